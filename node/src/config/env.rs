//! Variables of the environment that override keys.
//!
//! `MILLRACE_HTTP_ADDR` is `http.addr`; `REGISTRY_HTTP_ADDR` too, because the Docker registry reads
//! it. A key may contain `_` itself, and a name of an upstream may stand in the variable with `_`
//! for its dots: of all keys that a variable could mean, the one with the longest fixed part is it.

use std::sync::Arc;

use super::error::{Mistake, Place, Problem};
use super::schema::{Fate, KEYS, Key, Owner};
use super::tree::{Node, Origin, Scalar, Value};
use super::yaml;
use crate::upstream::is_unusable_proxy;

const OWN: &str = "MILLRACE_";
const REGISTRY: &str = "REGISTRY_";

/// What the variables left to say.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) mistakes: Vec<Mistake>,
    /// Variables of the registry's that it does not know either, and of proxies that are none.
    pub(super) warnings: Vec<Mistake>,
}

/// Puts every variable that names a key into `tree`; `MILLRACE_` wins over `REGISTRY_`.
pub(super) fn apply(
    tree: &mut Node,
    env: impl IntoIterator<Item = (String, String)>,
    upstreams: &[String],
) -> Outcome {
    let mut variables: Vec<_> = env.into_iter().collect();
    // REGISTRY_ before MILLRACE_, short before long: REGISTRY_STORAGE before what is in it.
    variables.sort_by_key(|(name, _)| (name.starts_with(OWN), name.len()));
    let mut outcome = Outcome::default();
    for (name, value) in variables {
        let Some((owner, rest)) = prefix(&name) else {
            outcome.warnings.extend(unusable_proxy(&name, &value));
            continue;
        };
        match find(tree, upstreams, owner, rest) {
            Some(target) => outcome.mistakes.extend(put(tree, &target, &name, &value)),
            None if is_from_kubernetes(rest) => {}
            None => {
                let problem = Problem::UnknownVariable {
                    nearest: nearest(owner, rest),
                };
                let mistake = Mistake {
                    place: Place::Variable(name.into()),
                    key: String::new(),
                    problem,
                };
                match owner {
                    Owner::Millrace => outcome.mistakes.push(mistake),
                    Owner::Registry => outcome.warnings.push(mistake),
                }
            }
        }
    }
    outcome
}

/// Says that a variable for a proxy names none. The clients of upstreams read it, not this file.
fn unusable_proxy(name: &str, value: &str) -> Option<Mistake> {
    is_unusable_proxy(name, value).then(|| Mistake {
        place: Place::Variable(name.into()),
        key: String::new(),
        problem: Problem::UnusableProxy,
    })
}

fn prefix(name: &str) -> Option<(Owner, &str)> {
    let own = name.strip_prefix(OWN).map(|rest| (Owner::Millrace, rest));
    own.or_else(|| {
        name.strip_prefix(REGISTRY)
            .map(|rest| (Owner::Registry, rest))
    })
}

/// Kubernetes tells every container of a namespace about the services `millrace` and `registry`.
fn is_from_kubernetes(rest: &str) -> bool {
    let rest = format!("_{rest}");
    rest.contains("_PORT") || rest.contains("_SERVICE_")
}

/// A key that a variable means.
struct Target {
    key: &'static Key,
    path: Vec<String>,
    /// Characters of the variable that are fixed by the key.
    fixed: usize,
}

fn find(tree: &Node, upstreams: &[String], owner: Owner, rest: &str) -> Option<Target> {
    let keys = KEYS
        .iter()
        .filter(|key| owner == Owner::Millrace || key.owner == Owner::Registry)
        // Items of lists cannot be named, the whole list can.
        .filter(|key| key.steps().all(|step| step != "[]"));
    keys.filter_map(|key| {
        let names = Names { tree, upstreams };
        let open = matches!(key.fate, Fate::Open(_) | Fate::Refused(_) | Fate::Driver);
        let mut path = Vec::new();
        let steps: Vec<_> = key.steps().collect();
        let fixed = names.walk(&mut path, &steps, rest, open)?;
        Some(Target { key, path, fixed })
    })
    .max_by_key(|target| target.fixed)
}

/// The names that may stand for `*`.
struct Names<'a> {
    tree: &'a Node,
    upstreams: &'a [String],
}

impl Names<'_> {
    /// Follows `steps` through `rest`; returns how many characters they fixed.
    fn walk(
        &self,
        path: &mut Vec<String>,
        steps: &[&str],
        rest: &str,
        open: bool,
    ) -> Option<usize> {
        let Some((step, steps)) = steps.split_first() else {
            return (rest.is_empty() || open).then_some(0);
        };
        let names = match *step {
            "*" => self.candidates(path, rest),
            step => vec![(step.to_owned(), step.len() + 1)],
        };
        names.into_iter().find_map(|(name, fixed)| {
            let after = strip(rest, &name)?;
            path.push(name);
            let found = self.walk(path, steps, after, open);
            if found.is_none() {
                path.pop();
            }
            found.map(|found| found + fixed)
        })
    }

    /// Names that `rest` may begin with: those that are there, the longest first, then new ones.
    fn candidates(&self, path: &[String], rest: &str) -> Vec<(String, usize)> {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let there = self.tree.find(&path).into_iter().flat_map(Node::entries);
        let mut known: Vec<_> = there.map(|entry| entry.key.clone()).collect();
        known.extend(self.upstreams.iter().cloned());
        known.retain(|name| strip(rest, name).is_some());
        known.sort_by_key(|name| std::cmp::Reverse(name.len()));
        let known = known.into_iter().map(|name| (name.len(), name));
        let ends = rest
            .match_indices('_')
            .map(|(end, _)| end)
            .chain([rest.len()]);
        let new = ends.map(|end| (0, rest[..end].to_lowercase()));
        known
            .chain(new)
            .map(|(fixed, name)| (name, fixed))
            .collect()
    }
}

/// Strips `name` in the spelling of variables, and the `_` after it, from the start of `rest`.
fn strip<'a>(rest: &'a str, name: &str) -> Option<&'a str> {
    let head = rest.get(..name.len()).filter(|head| !head.is_empty())?;
    if spelled(head) != spelled(name) {
        return None;
    }
    match &rest[name.len()..] {
        "" => Some(""),
        after => after.strip_prefix('_').filter(|after| !after.is_empty()),
    }
}

/// How a key or a name is spelled in a variable.
fn spelled(name: &str) -> String {
    let letter = |c: char| match c {
        c if c.is_ascii_alphanumeric() => c.to_ascii_uppercase(),
        _ => '_',
    };
    name.chars().map(letter).collect()
}

fn put(tree: &mut Node, target: &Target, name: &str, value: &str) -> Option<Mistake> {
    let name: Arc<str> = name.into();
    let path: Vec<_> = target.path.iter().map(String::as_str).collect();
    let value = match target.key.fate {
        _ if value.trim().is_empty() => Ok(Value::Null),
        Fate::Section | Fate::Items | Fate::List => parsed(value),
        _ => Ok(scalar(value)),
    };
    match value {
        Ok(value) => {
            let origin = Origin::Variable(name);
            tree.set(&path, Node { origin, value }.moved());
            None
        }
        Err(message) => Some(Mistake {
            place: Place::Variable(name),
            key: path.join("."),
            problem: Problem::Syntax { message },
        }),
    }
}

fn parsed(value: &str) -> Result<Value, String> {
    let node = yaml::parse(value).map_err(|error| error.message)?;
    Ok(node.value)
}

/// Takes the text as it is, so that a password may have any characters, unless it is in quotes:
/// the Docker registry reads it as YAML, and people have learnt to quote.
fn scalar(value: &str) -> Value {
    let value = value.trim();
    if value.starts_with(['"', '\''])
        && let Ok(Value::Scalar(scalar)) = parsed(value)
    {
        return Value::Scalar(scalar);
    }
    Value::Scalar(Scalar {
        text: value.to_owned(),
        quoted: false,
    })
}

/// The variable nearest to an unknown one.
fn nearest(owner: Owner, rest: &str) -> Option<String> {
    let prefix = match owner {
        Owner::Millrace => OWN,
        Owner::Registry => REGISTRY,
    };
    KEYS.iter()
        .filter(|key| key.is_read() && (owner == Owner::Millrace || key.owner == owner))
        .filter(|key| !key.path.contains("[]"))
        .map(|key| key.path.replace('*', "<NAME>"))
        .map(|path| format!("{prefix}{}", path.to_uppercase().replace('.', "_")))
        .min_by_key(|name| strsim::osa_distance(&name[prefix.len()..], rest))
}
