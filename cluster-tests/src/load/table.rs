//! Figures, the targets they are judged by, and the table that shows both.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use super::runs::{Quality, Runs, Spread};

/// What a figure is counted in.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// How many times the rival's.
    Times,
    /// 10^6 bytes per second.
    MegabytesPerSecond,
    /// CPU seconds per GiB served.
    CpuSecondsPerGib,
    /// Requests per second.
    RequestsPerSecond,
    /// 10^-3 seconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// A number of things.
    Count,
    /// 2^20 bytes.
    Mebibytes,
    /// 10^3 bytes per second.
    KilobytesPerSecond,
    /// Of one CPU.
    Percent,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            // Bytes that leave once are judged to a thousandth.
            Self::Times => format!("{value:.3} x"),
            Self::MegabytesPerSecond => format!("{value:.0} MB/s"),
            Self::CpuSecondsPerGib => format!("{value:.2} CPU-s/GiB"),
            Self::RequestsPerSecond => format!("{value:.0}/s"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Count => format!("{value:.0}"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::KilobytesPerSecond => format!("{value:.1} kB/s"),
            Self::Percent => format!("{value:.2} %"),
        }
    }
}

/// What the result of a figure must reach.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// As much or more.
    AtLeast(f64),
    /// As much or less.
    AtMost(f64),
    /// Shown for what it tells; nothing must be reached.
    None,
}

impl Target {
    fn is_missed(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value < least,
            Self::AtMost(most) => value > most,
            Self::None => false,
        }
    }

    fn show(self, unit: Unit) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {}", unit.show(least)),
            Self::AtMost(most) => format!("<= {}", unit.show(most)),
            Self::None => String::new(),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was done.
    pub work: String,
    /// What of it was measured, and against whom.
    pub what: &'static str,
    /// Ours and the rival's, in their own unit.
    pub sides: String,
    /// What is judged, over the runs; its median counts.
    pub result: Spread,
    pub unit: Unit,
    pub target: Target,
    /// How many runs, and how quiet they were.
    pub quality: Quality,
}

impl Figure {
    /// A figure of ours alone.
    pub fn alone<T>(
        runs: &Runs<T>,
        (work, what): (String, &'static str),
        (unit, value): (Unit, impl Fn(&T) -> f64),
        target: Target,
    ) -> Self {
        Self {
            work,
            what,
            sides: String::new(),
            result: runs.spread(value),
            unit,
            target,
            quality: runs.quality(),
        }
    }

    /// How many times the rival's ours is; both sides are shown in `unit`.
    pub fn ratio<T>(
        runs: &Runs<(T, T)>,
        (work, what): (String, &'static str),
        (unit, value): (Unit, impl Fn(&T) -> f64),
        target: Target,
    ) -> Self {
        // A quick run may be shorter than the clock's tick.
        let times = |(ours, rival): &(T, T)| value(ours) / value(rival).max(1e-6);
        Self {
            sides: sides(
                unit,
                runs.spread(|(ours, _)| value(ours)),
                runs.spread(|(_, rival)| value(rival)),
            ),
            ..Self::alone(runs, (work, what), (Unit::Times, times), target)
        }
    }

    fn is_missed(&self) -> bool {
        !self.quality.is_void && self.target.is_missed(self.result.median)
    }

    /// Whether it must be reached on every machine: how much memory is taken does not depend on how
    /// busy the machine is.
    fn is_binding(&self) -> bool {
        matches!(self.unit, Unit::Mebibytes)
    }

    fn cells(&self) -> [String; 8] {
        let verdict = match self.target {
            Target::None => "",
            _ if self.quality.is_void => "VOID",
            _ if self.is_missed() => "MISSED",
            _ => "pass",
        };
        [
            self.work.clone(),
            self.what.to_owned(),
            self.sides.clone(),
            self.unit.show(self.result.median),
            format!("{:.2}..{:.2}", self.result.least, self.result.most),
            self.target.show(self.unit),
            verdict.to_owned(),
            self.quality.text.clone(),
        ]
    }
}

/// Shows two medians in `unit`.
pub fn sides(unit: Unit, ours: Spread, rival: Spread) -> String {
    format!("{} : {}", unit.show(ours.median), unit.show(rival.median))
}

/// The figures in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Table {
    figures: Vec<Figure>,
}

const TITLES: [&str; 8] = [
    "work",
    "figure",
    "ours : rival (medians)",
    "result",
    "min..max",
    "target",
    "verdict",
    "runs",
];

impl Table {
    /// A table of `figures` alone.
    pub fn of(figures: Vec<Figure>) -> Self {
        Self { figures }
    }

    /// Adds figures.
    pub fn extend(&mut self, figures: Vec<Figure>) {
        self.figures.extend(figures);
    }

    /// Tells whether a target was missed.
    pub fn missed(&self) -> bool {
        self.figures.iter().any(Figure::is_missed)
    }

    /// Tells whether a target was missed that must be reached on every machine.
    pub fn exceeded(&self) -> bool {
        let mut figures = self.figures.iter();
        figures.any(|figure| figure.is_binding() && figure.is_missed())
    }
}

/// The exit status of a benchmark that missed a target and is strict, or whose target is binding.
const MISSED: u8 = 2;

/// Measures rows one after the other, and prints the table of those that could be measured.
///
/// Fails when one could not be, or with status 2 when a target was missed: any, if it is `strict`, else
/// one that must be reached on every machine.
pub async fn measure_all<R: fmt::Display + Copy>(
    rows: Vec<R>,
    strict: bool,
    measure: impl AsyncFn(R) -> Result<Vec<Figure>>,
) -> ExitCode {
    let mut table = Table::default();
    let mut failed = false;
    for row in rows {
        eprintln!("measuring {row}");
        match measure(row).await {
            Ok(figures) => {
                eprintln!("{}", Table::of(figures.clone()));
                table.extend(figures);
            }
            Err(error) => {
                eprintln!("{row} could not be measured: {error:?}");
                failed = true;
            }
        }
    }
    println!("{table}");
    let is_missed = table.exceeded() || strict && table.missed();
    match (failed, is_missed) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(MISSED),
        (false, false) => ExitCode::SUCCESS,
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = TITLES.map(str::to_owned);
        let lines: Vec<_> = std::iter::once(titles)
            .chain(self.figures.iter().map(Figure::cells))
            .collect();
        let widths: [usize; 8] = std::array::from_fn(|column| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.max().unwrap_or_default()
        });
        for line in lines {
            let cells = line.iter().zip(widths);
            let padded: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(formatter, "{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a figure that misses its target.
    fn missed(unit: Unit) -> Figure {
        Figure {
            work: String::new(),
            what: "",
            sides: String::new(),
            result: Spread {
                least: 2.0,
                median: 2.0,
                most: 2.0,
            },
            unit,
            target: Target::AtMost(1.0),
            quality: Quality {
                is_void: false,
                text: String::new(),
            },
        }
    }

    #[test]
    fn memory_is_judged_on_every_machine_and_time_only_by_who_is_strict() {
        let time = Table::of(vec![missed(Unit::Seconds)]);
        assert!(time.missed() && !time.exceeded());
        let memory = Table::of(vec![missed(Unit::Mebibytes)]);
        assert!(memory.exceeded());
    }
}
