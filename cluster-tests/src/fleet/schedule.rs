//! Faults in an order that a seed chooses: the same seed yields the same faults at the same times.
//!
//! It only decides; who carries the faults out is a test.

use std::time::Duration;

use crate::image::Noise;

/// Nodes that are dead, hung or away at the same time, at most: a third of them, as in the issue of a
/// storm, rounded up.
const DOWN_OF: usize = 3;

/// Between two faults, in milliseconds: about as long as it takes to notice one.
const PAUSE: (u64, u64) = (1000, 4000);

/// How long faults last, in milliseconds: from shorter than a member is doubted (3 s) to longer than
/// it keeps its seat (12 s).
const LASTING: (u64, u64) = (500, 16_000);

/// Nothing begins so shortly before the end that there is no time for it.
const LEAST_LASTING: Duration = Duration::from_millis(LASTING.0);

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node is killed by SIGKILL, and started again at the end.
    Kill(usize),
    /// The node is stopped by SIGSTOP, and goes on at the end.
    Hang(usize),
    /// The node leaves, and comes back at the end.
    Leave(usize),
    /// These nodes and the others do not reach each other.
    Split(Vec<usize>),
    /// No UDP packet comes in to the node, as behind a firewall: nobody has content from it, nor it
    /// from anybody.
    BlockUdp(usize),
    /// The upstream is slow.
    Slow,
}

/// What happens at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The fault begins.
    Begin(Fault),
    /// It ends.
    End(Fault),
}

/// A moment of the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Time since the beginning.
    pub at: Duration,
    /// What happens.
    pub act: Act,
}

/// Chooses faults for `nodes` nodes over `length`; every fault ends within it.
///
/// At most a third of the nodes are dead, hung or away at the same time, and there is at most one split,
/// one blocked node and one slowness.
///
/// # Panics
/// When there are fewer than two nodes.
pub fn schedule(seed: u64, nodes: usize, length: Duration) -> Vec<Step> {
    assert!(nodes >= 2, "one node cannot be split");
    let mut choices = Noise::new(seed);
    let mut steps: Vec<Step> = Vec::new();
    let mut lasting: Vec<(Fault, Duration)> = Vec::new();
    let mut at = between(&mut choices, PAUSE);
    while at + LEAST_LASTING < length {
        lasting.retain(|(_, end)| *end > at);
        let current: Vec<&Fault> = lasting.iter().map(|(fault, _)| fault).collect();
        if let Some(fault) = choose(&mut choices, nodes, &current) {
            let end = (at + between(&mut choices, LASTING)).min(length);
            steps.push(Step {
                at,
                act: Act::Begin(fault.clone()),
            });
            steps.push(Step {
                at: end,
                act: Act::End(fault.clone()),
            });
            lasting.push((fault, end));
        }
        at += between(&mut choices, PAUSE);
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// Chooses a fault that may be added to `current`.
fn choose(choices: &mut Noise, nodes: usize, current: &[&Fault]) -> Option<Fault> {
    let index = |choices: &mut Noise| {
        usize::try_from(choices.below(nodes as u64)).expect("below a number of nodes")
    };
    let down: Vec<usize> = current.iter().filter_map(|fault| fault.node()).collect();
    let node = index(choices);
    let may_go_down = down.len() < nodes.div_ceil(DOWN_OF) && !down.contains(&node);
    let has = |kind: fn(&Fault) -> bool| current.iter().any(|fault| kind(fault));
    match choices.below(8) {
        0 | 1 if may_go_down => Some(Fault::Kill(node)),
        2 | 3 if may_go_down => Some(Fault::Hang(node)),
        4 if may_go_down => Some(Fault::Leave(node)),
        5 if !has(|fault| matches!(fault, Fault::Split(_))) => {
            let others = (0..nodes).filter(|other| *other != node);
            let mut side: Vec<usize> = others.filter(|_| choices.below(2) == 0).collect();
            side.push(node);
            // One that is cut off from nobody is no split.
            side.truncate(nodes - 1);
            side.sort_unstable();
            Some(Fault::Split(side))
        }
        6 if !has(|fault| matches!(fault, Fault::BlockUdp(_))) => Some(Fault::BlockUdp(node)),
        7 if !has(|fault| *fault == Fault::Slow) => Some(Fault::Slow),
        _ => None,
    }
}

impl Fault {
    /// Returns the node that is down.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Kill(node) | Self::Hang(node) | Self::Leave(node) => Some(*node),
            Self::Split(_) | Self::BlockUdp(_) | Self::Slow => None,
        }
    }
}

fn between(choices: &mut Noise, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(least + choices.below(most - least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(600);

    #[test]
    fn the_same_seed_chooses_the_same_and_another_one_does_not() {
        assert_eq!(schedule(7, 5, LENGTH), schedule(7, 5, LENGTH));
        assert_ne!(schedule(7, 5, LENGTH), schedule(8, 5, LENGTH));
    }

    #[test]
    fn every_kind_comes_and_ends_and_most_nodes_live() {
        for seed in 0..20 {
            let mut current: Vec<Fault> = Vec::new();
            let mut kinds = [0; 6];
            for step in schedule(seed, 6, LENGTH) {
                assert!(step.at <= LENGTH);
                match step.act {
                    Act::Begin(fault) => {
                        assert!(!current.contains(&fault), "{fault:?} twice");
                        kinds[match &fault {
                            Fault::Kill(_) => 0,
                            Fault::Hang(_) => 1,
                            Fault::Split(side) => {
                                assert!((1..6).contains(&side.len()), "{side:?}");
                                2
                            }
                            Fault::Slow => 3,
                            Fault::Leave(_) => 4,
                            Fault::BlockUdp(_) => 5,
                        }] += 1;
                        current.push(fault);
                    }
                    Act::End(fault) => {
                        let at = current.iter().position(|other| *other == fault);
                        current.swap_remove(at.expect("it had begun"));
                    }
                }
                let down: Vec<usize> = current.iter().filter_map(Fault::node).collect();
                assert!(down.len() <= 2, "{down:?}");
            }
            assert!(current.is_empty(), "{current:?}");
            assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
        }
    }
}
