//! Which keys exist and what becomes of each: the table, and the check of a tree against it.
//!
//! Holds all keys of the Docker registry's configuration (versions 2.8 and 3) and Millrace's own.
//! Whether a value has the right type is not decided here but by the struct that reads it.

use super::error::{Mistake, Problem};
use super::tree::{Entry, Node, Value};
use super::{IgnoredKey, Places};

pub(super) use table::{Fate, KEYS, Key, Owner};

mod nearest;
mod table;

pub(super) use nearest::nearest;

/// What the check leaves behind; the tree then holds only keys that are read.
pub(super) struct Check<'a> {
    places: &'a Places,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) ignored: Vec<IgnoredKey>,
}

const DRIVER: &str = "data lives in storage.filesystem.rootdirectory only";

/// Steps from the top of the tree to a key.
type Path = Vec<String>;

impl<'a> Check<'a> {
    pub(super) fn new(places: &'a Places) -> Self {
        Self {
            places,
            mistakes: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Checks all keys of `tree` and takes away those that are not read later.
    pub(super) fn run(&mut self, tree: &mut Node) {
        self.mapping(tree, &mut Path::new(), false);
    }

    fn mapping(&mut self, node: &mut Node, path: &mut Path, ignored: bool) {
        match &mut node.value {
            Value::Null => {}
            Value::Map(entries) => entries.retain_mut(|entry| {
                path.push(entry.key.clone());
                let kept = self.entry(entry, path, ignored);
                path.pop();
                kept
            }),
            Value::Scalar(_) | Value::List(_) => {
                if !ignored {
                    self.mistake(node, path, Problem::NotAMapping);
                }
                node.value = Value::Null;
            }
        }
    }

    /// Checks one key with everything below it; returns whether it is to be kept.
    fn entry(&mut self, entry: &mut Entry, path: &mut Path, ignored: bool) -> bool {
        let Some(key) = table::find(path) else {
            let problem = Problem::UnknownKey {
                nearest: nearest(path),
            };
            self.mistakes
                .push(self.places.mistake(&entry.origin, dotted(path), problem));
            return false;
        };
        match key.fate {
            Fate::Driver => {
                self.refuse(entry, path, DRIVER);
                false
            }
            // The registry treats a key without a value as absent.
            _ if matches!(entry.node.value, Value::Null) => true,
            Fate::Section => {
                self.mapping(&mut entry.node, path, ignored);
                !ignored
            }
            Fate::Items => {
                self.items(&mut entry.node, path, ignored);
                !ignored
            }
            Fate::Value | Fate::List => !ignored,
            Fate::Ignored(reason) => {
                self.ignore(entry, path, reason, ignored);
                self.mapping(&mut entry.node, path, true);
                false
            }
            Fate::Open(reason) => {
                self.ignore(entry, path, reason, ignored);
                false
            }
            Fate::Only(values, advice) => {
                let accepted = matches!(&entry.node.value,
                    Value::Scalar(scalar) if values.contains(&scalar.text.as_str()));
                if !accepted {
                    self.refuse(entry, path, advice);
                }
                false
            }
            Fate::Refused(advice) => {
                self.refuse(entry, path, advice);
                false
            }
        }
    }

    fn items(&mut self, node: &mut Node, path: &mut Path, ignored: bool) {
        let Value::List(items) = &mut node.value else {
            // The reader says that it is not a list; inside an ignored key nobody does.
            return;
        };
        for (index, item) in items.iter_mut().enumerate() {
            path.push(format!("[{index}]"));
            self.mapping(item, path, ignored);
            path.pop();
        }
    }

    fn ignore(&mut self, entry: &Entry, path: &Path, reason: &'static str, ignored: bool) {
        if ignored {
            return;
        }
        self.ignored.push(IgnoredKey {
            key: dotted(path),
            place: self.places.place(&entry.origin),
            reason,
        });
    }

    fn refuse(&mut self, entry: &Entry, path: &Path, advice: &'static str) {
        let problem = Problem::Refused { advice };
        self.mistakes
            .push(self.places.mistake(&entry.origin, dotted(path), problem));
    }

    fn mistake(&mut self, node: &Node, path: &Path, problem: Problem) {
        self.mistakes
            .push(self.places.mistake(&node.origin, dotted(path), problem));
    }
}

/// Writes a path as users do: `upstreams.corp.tags[0].match`.
pub(super) fn dotted(path: &[String]) -> String {
    path.join(".").replace(".[", "[")
}
