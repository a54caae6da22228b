//! Repeating a measurement, with the rival taking turns, and telling how quiet the machine was.

use anyhow::Result;
use millrace_cluster_tests::load::meter::Moment;

/// A run is disturbed when others used more than this share of the machine.
const DISTURBED: f64 = 0.10;

/// How many disturbed runs are measured again; on a machine that is never quiet it would not end.
const MOST_REPEATED: usize = 3;

/// One measured run.
#[derive(Debug)]
struct Run<T> {
    value: T,
    foreign_share: f64,
}

/// The runs that a figure is taken from.
#[derive(Debug)]
pub(crate) struct Runs<T> {
    runs: Vec<Run<T>>,
}

/// Whose turn it is in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The number of the run; 0 is the one that only warms up.
    pub(crate) number: u64,
}

impl Turn {
    /// Measures ours and the rival's, in alternating order.
    pub(crate) async fn pair<A, B>(
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
    /// Measures until `count` runs were quiet, with at most [`MOST_REPEATED`] more, and keeps the
    /// quietest.
    ///
    /// A first run warms up and does not count.
    /// # Errors
    /// That of the first run that fails.
    pub(crate) async fn collect(
        count: usize,
        mut measure: impl AsyncFnMut(Turn) -> Result<T>,
    ) -> Result<Self> {
        measure(Turn { number: 0 }).await?;
        let mut runs: Vec<Run<T>> = Vec::new();
        for number in 1..=(count + MOST_REPEATED) as u64 {
            let start = Moment::now()?;
            let value = measure(Turn { number }).await?;
            let foreign_share = start.foreign_share()?;
            eprintln!("  run {number}: {:.0} % foreign", foreign_share * 100.0);
            runs.push(Run {
                value,
                foreign_share,
            });
            if runs.iter().filter(|run| run.is_quiet()).count() == count {
                break;
            }
        }
        runs.sort_by(|a, b| a.foreign_share.total_cmp(&b.foreign_share));
        runs.truncate(count);
        Ok(Self { runs })
    }

    /// Returns smallest, median and largest value of `figure`.
    pub(crate) fn spread(&self, figure: impl Fn(&T) -> f64) -> Spread {
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

    /// Says how many runs there are and how many of them were disturbed.
    pub(crate) fn quality(&self) -> String {
        let disturbed = self.runs.iter().filter(|run| !run.is_quiet()).count();
        let most = self
            .runs
            .iter()
            .map(|run| run.foreign_share)
            .fold(0.0, f64::max);
        let mark = if disturbed > 0 {
            format!(", {disturbed} DISTURBED")
        } else {
            String::new()
        };
        format!(
            "{} runs, others <= {:.0} %{mark}",
            self.runs.len(),
            most * 100.0
        )
    }
}

impl<T> Run<T> {
    fn is_quiet(&self) -> bool {
        self.foreign_share <= DISTURBED
    }
}

/// How a figure varies over the runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}
