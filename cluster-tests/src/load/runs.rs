//! Repeating a measurement, with the rival taking turns, and telling how quiet the machine was.

use super::meter::{Moment, Shares};
use anyhow::Result;

/// A run is disturbed when others used more than this share of the machine.
const DISTURBED: f64 = 0.10;

/// Where many nodes share one machine and links have a rate, the machine must not be what is
/// measured: above this share of it, whoever used it, a run is void.
const VOID: f64 = 0.80;

/// How many disturbed runs are measured again; on a machine that is never quiet it would not end.
const MOST_REPEATED: usize = 3;

/// One measured run.
#[derive(Debug)]
struct Run<T> {
    value: T,
    shares: Shares,
}

/// The runs that a figure is taken from.
#[derive(Debug)]
pub struct Runs<T> {
    runs: Vec<Run<T>>,
    /// Whether the machine's load can make a run void.
    can_be_void: bool,
}

/// Whose turn it is in a run.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// The number of the run; 0 is the one that only warms up.
    pub number: u64,
}

/// How far the runs of a figure can be trusted.
#[derive(Clone, Debug)]
pub struct Quality {
    /// The same in words.
    pub(super) text: String,
    /// Whether the machine was too busy for the figure to mean anything.
    pub(super) is_void: bool,
}

impl Turn {
    /// Measures ours and the rival's, in alternating order.
    ///
    /// # Errors
    /// Those of either.
    pub async fn pair<A, B>(
        self,
        ours: impl AsyncFnOnce() -> Result<A>,
        rival: impl AsyncFnOnce() -> Result<B>,
    ) -> Result<(A, B)> {
        if self.number.is_multiple_of(2) {
            let ours = ours().await?;
            return Ok((ours, rival().await?));
        }
        let rival = rival().await?;
        Ok((ours().await?, rival))
    }
}

impl<T> Runs<T> {
    /// Measures until `count` runs were quiet, with at most `MOST_REPEATED` more, and keeps the
    /// quietest.
    ///
    /// A first run warms up and does not count.
    /// # Errors
    /// That of the first run that fails.
    pub async fn collect(
        count: usize,
        mut measure: impl AsyncFnMut(Turn) -> Result<T>,
    ) -> Result<Self> {
        measure(Turn { number: 0 }).await?;
        let mut runs: Vec<Run<T>> = Vec::new();
        for number in 1..=(count + MOST_REPEATED) as u64 {
            let start = Moment::now()?;
            let value = measure(Turn { number }).await?;
            let shares = start.shares()?;
            eprintln!("  run {number}: {:.0} % foreign", shares.foreign * 100.0);
            runs.push(Run { value, shares });
            if runs.iter().filter(|run| run.is_quiet()).count() == count {
                break;
            }
        }
        runs.sort_by(|a, b| a.shares.foreign.total_cmp(&b.shares.foreign));
        runs.truncate(count);
        Ok(Self {
            runs,
            can_be_void: false,
        })
    }

    /// Measures `count` times, each time with a fleet of its own, and leaves out void runs if there
    /// are others. Each run says itself how busy the machine was while it measured, because
    /// starting a fleet is not what is measured.
    ///
    /// # Errors
    /// That of the first run that fails.
    pub async fn of_fleets(
        count: usize,
        mut measure: impl AsyncFnMut(Turn) -> Result<(T, Shares)>,
    ) -> Result<Self> {
        let mut runs: Vec<Run<T>> = Vec::new();
        for number in 1..=count as u64 {
            let (value, shares) = measure(Turn { number }).await?;
            eprintln!("  run {number}: {shares}");
            runs.push(Run { value, shares });
        }
        if runs.iter().any(|run| !run.is_void()) {
            runs.retain(|run| !run.is_void());
        }
        Ok(Self {
            runs,
            can_be_void: true,
        })
    }

    /// Returns smallest, median and largest value of `figure`.
    pub fn spread(&self, figure: impl Fn(&T) -> f64) -> Spread {
        let mut values: Vec<f64> = self.runs.iter().map(|run| figure(&run.value)).collect();
        values.sort_by(f64::total_cmp);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Spread {
            least: values[0],
            median: (values[lower] + values[upper]) / 2.0,
            most: values[values.len() - 1],
        }
    }

    /// Says how many runs there are, and how many of them mean little.
    pub fn quality(&self) -> Quality {
        let most = |share: fn(&Shares) -> f64| {
            let shares = self.runs.iter().map(|run| share(&run.shares));
            shares.fold(0.0, f64::max) * 100.0
        };
        let count = self.runs.len();
        let others = most(|shares| shares.foreign);
        if self.can_be_void {
            let busy = most(|shares| shares.busy);
            return Quality {
                text: format!("{count} runs, machine <= {busy:.0} %, others <= {others:.0} %"),
                is_void: self.runs.iter().any(Run::is_void),
            };
        }
        let disturbed = self.runs.iter().filter(|run| !run.is_quiet()).count();
        let mark = if disturbed > 0 {
            format!(", {disturbed} DISTURBED")
        } else {
            String::new()
        };
        Quality {
            text: format!("{count} runs, others <= {others:.0} %{mark}"),
            is_void: false,
        }
    }
}

impl<T> Run<T> {
    fn is_quiet(&self) -> bool {
        self.shares.foreign <= DISTURBED
    }

    fn is_void(&self) -> bool {
        self.shares.busy > VOID
    }
}

impl<A, B> Runs<(A, B)> {
    /// Parts two measurements that were made in the same runs.
    pub fn unzip(self) -> (Runs<A>, Runs<B>) {
        let parted = self.runs.into_iter().map(|run| {
            let (a, b) = run.value;
            let shares = run.shares;
            (Run { value: a, shares }, Run { value: b, shares })
        });
        let (a, b) = parted.unzip();
        let can_be_void = self.can_be_void;
        (
            Runs {
                runs: a,
                can_be_void,
            },
            Runs {
                runs: b,
                can_be_void,
            },
        )
    }
}

/// How a figure varies over the runs.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The smallest value.
    pub least: f64,
    /// The middle one, or the mean of both.
    pub median: f64,
    /// The largest value.
    pub most: f64,
}
