//! Mistakes in the configuration: one line each, with file, line and key.
//!
//! A message never repeats a value that may be secret: values are repeated only by the reader of
//! typed values, which reads secrets as text that cannot be wrong.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::tree::Origin;
use crate::cluster::InvalidConfig;
use crate::upstream::config::Problem as UpstreamProblem;

/// Everything that is wrong with a configuration; printed one mistake a line, in order of lines.
#[derive(Clone, Debug)]
pub struct ConfigError {
    mistakes: Vec<Mistake>,
}

impl ConfigError {
    /// Collects `mistakes`; `Ok` without any.
    pub(super) fn check(mut mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() {
            return Ok(());
        }
        mistakes.sort_by_key(|mistake| match mistake.place {
            Place::File { line, .. } => line,
            Place::Variable(_) | Place::Defaults => u64::MAX,
        });
        Err(Self { mistakes })
    }

    /// Returns the mistakes; at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl From<Mistake> for ConfigError {
    fn from(mistake: Mistake) -> Self {
        let mistakes = vec![mistake];
        Self { mistakes }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// Where it was made.
    pub place: Place,
    /// Path of the key with dots; empty when it concerns no key.
    pub key: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.problem.fmt(f)
    }
}

/// Where something in the configuration was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    File {
        /// The file as it was named.
        path: Arc<PathBuf>,
        /// Its line, counted from 1; 0 for the file as a whole.
        line: u64,
    },
    /// In the variable of the environment with this name.
    Variable(Arc<str>),
    /// Nowhere: without a file the defaults are used.
    Defaults,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Defaults => f.write_str("defaults"),
        }
    }
}

/// Turns the origins of a tree into places.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) file: Option<Arc<PathBuf>>,
}

impl Places {
    pub(super) fn place(&self, origin: &Origin) -> Place {
        match (origin, &self.file) {
            (Origin::Variable(name), _) => Place::Variable(Arc::clone(name)),
            (Origin::Line(line), Some(path)) => Place::File {
                path: Arc::clone(path),
                line: *line,
            },
            (Origin::Line(_), None) => Place::Defaults,
        }
    }

    pub(super) fn mistake(&self, origin: &Origin, key: String, problem: Problem) -> Mistake {
        let place = self.place(origin);
        Mistake {
            place,
            key,
            problem,
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read: {error}")]
    Unreadable {
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// The file is no YAML, or not one document.
    #[error("not valid YAML: {message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// Keys are expected below this one.
    #[error("expected a mapping")]
    NotAMapping,
    /// No such key.
    #[error("unknown key{}", suggestion(.nearest))]
    UnknownKey {
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// No key has this variable.
    #[error("no key has this name{}", suggestion(.nearest))]
    UnknownVariable {
        /// The variable that was probably meant.
        nearest: Option<String>,
    },
    /// The variable is for a proxy and is written wrongly; its value is not repeated, for a password
    /// may be in it.
    #[error(
        "names no proxy that can be used; it must be http://[user:password@]host:port, or https \
         instead of http, with %2F %3A %40 for / : @ of a password"
    )]
    UnusableProxy,
    /// The key decides who may read, how traffic is protected or where data lives, and is not
    /// implemented: to start without it would not be what was asked for.
    #[error("not supported by this version: {advice}")]
    Refused {
        /// What to do.
        advice: &'static str,
    },
    /// The value is not what the key needs.
    #[error("{message}")]
    Value {
        /// What was expected and found.
        message: String,
    },
    /// The settings of upstreams do not fit together.
    #[error(transparent)]
    Upstream(#[from] UpstreamProblem),
    /// A setting of the cluster makes no sense.
    #[error(transparent)]
    Cluster(#[from] InvalidConfig),
    /// Two keys say the same thing.
    #[error("{other} sets this as well; keep one of them")]
    Twice {
        /// The other key.
        other: String,
    },
    /// A key that means nothing without another.
    #[error("needs {other} beside it")]
    Needs {
        /// The other key.
        other: &'static str,
    },
    /// A value that is too large.
    #[error("more than {limit}")]
    TooLarge {
        /// The largest value.
        limit: &'static str,
    },
    /// A number that must not be zero.
    #[error("must not be zero")]
    Zero,
    /// A lifetime beside a policy that has none.
    #[error("has no meaning beside policy {policy}")]
    NoTtl {
        /// The policy.
        policy: &'static str,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None => String::new(),
    }
}
