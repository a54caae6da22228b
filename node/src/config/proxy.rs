//! The registry's keys that are written otherwise here: `proxy`, `loglevel`, `storage: filesystem`.
//!
//! They are moved within the tree, so that everything behind reads one spelling and mistakes still
//! point to where they were made. This file reads no values.

use url::Url;

use super::error::{Mistake, Places, Problem};
use super::tree::{Entry, Node, Value};

/// Keys of `proxy` that an upstream has too, and their names there.
const MOVED: [(&str, &str); 4] = [
    ("remoteurl", "url"),
    ("username", "username"),
    ("password", "password"),
    ("exec", "exec"),
];

/// Rewrites `loglevel: x` as `log.level: x` and `storage: x` as `storage.x` before keys are checked.
pub(super) fn normalize(tree: &mut Node) {
    if let Some(level) = tree.remove("loglevel")
        && tree.find(&["log", "level"]).is_none()
        && !matches!(level.value, Value::Null)
    {
        tree.set(&["log", "level"], level);
    }
    let driver = tree.find_text(&["storage"]).map(str::to_owned);
    if let (Some(driver), Some(storage)) = (driver, tree.find(&["storage"])) {
        let empty = Node {
            origin: storage.origin.clone(),
            value: Value::Null,
        };
        tree.set(&["storage", &driver], empty);
    }
}

/// The upstream that `proxy` names.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Its name, which is the default upstream.
    pub(super) name: String,
    /// The moved keys: where they are now, and what they were.
    moved: Vec<(String, String)>,
}

impl Proxy {
    /// Says a path of `upstreams` in the words of the file.
    pub(super) fn written(&self, key: String) -> String {
        let moved = self.moved.iter().find_map(|(now, was)| {
            let rest = key.strip_prefix(now.as_str())?;
            Some(format!("{was}{rest}"))
        });
        moved.unwrap_or(key)
    }
}

/// Moves `proxy` into `upstreams`; `None` when it names no registry.
///
/// `known` tells which upstream a host is, with its URL. A host that no upstream has becomes one.
///
/// # Errors
/// When the entry in `upstreams` says the same thing; and when there are credentials but no URL.
pub(super) fn take(
    tree: &mut Node,
    places: &Places,
    known: impl Fn(&str) -> Option<(String, String)>,
) -> Result<Option<Proxy>, Vec<Mistake>> {
    let Some(proxy) = tree.remove("proxy") else {
        return Ok(None);
    };
    let Some(remote) = proxy.find_text(&["remoteurl"]).map(str::to_owned) else {
        return alone(&proxy, places).map_or(Ok(None), |mistake| Err(vec![mistake]));
    };
    let (name, is_there) = match host(&remote) {
        Some(host) => match known(&host) {
            Some((name, url)) => (name, same(&url, &remote)),
            None => (host, false),
        },
        // No URL: let the check of upstreams say why, under the name it would have.
        None => ("default".to_owned(), false),
    };
    let mut taken = Proxy {
        name,
        moved: Vec::new(),
    };
    let mut mistakes = Vec::new();
    for (was, now) in MOVED {
        let Some(entry) = proxy.entries().iter().find(|entry| entry.key == was) else {
            continue;
        };
        if is_empty(&entry.node) || (was == "remoteurl" && is_there) {
            continue;
        }
        mistakes.extend(taken.put(tree, entry, now, places).err());
    }
    if mistakes.is_empty() {
        return Ok(Some(taken));
    }
    Err(mistakes)
}

impl Proxy {
    fn put(
        &mut self,
        tree: &mut Node,
        entry: &Entry,
        now: &str,
        places: &Places,
    ) -> Result<(), Mistake> {
        let was = format!("proxy.{}", entry.key);
        let path = ["upstreams", &self.name, now];
        if tree.find(&path).is_some() {
            let problem = Problem::Twice {
                other: path.join("."),
            };
            return Err(places.mistake(&entry.origin, was, problem));
        }
        let mut node = entry.node.clone();
        node.origin = entry.origin.clone();
        tree.set(&path, node);
        self.moved.push((path.join("."), was));
        Ok(())
    }
}

/// Credentials without a registry belong to nobody.
fn alone(proxy: &Node, places: &Places) -> Option<Mistake> {
    let entry = proxy
        .entries()
        .iter()
        .find(|entry| entry.key != "remoteurl" && !is_empty(&entry.node))?;
    let problem = Problem::Value {
        message: "needs proxy.remoteurl beside it".to_owned(),
    };
    Some(places.mistake(&entry.origin, format!("proxy.{}", entry.key), problem))
}

/// The registry treats empty text as absent.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::Scalar(scalar) => scalar.text.is_empty(),
        Value::List(_) | Value::Map(_) => false,
    }
}

/// Host, and port unless it is the scheme's own.
fn host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Whether two URLs are one place, and nothing else is in them.
fn same(a: &str, b: &str) -> bool {
    let trimmed = |url: &str| {
        let mut url = Url::parse(url).ok()?;
        let path = url.path().trim_end_matches('/').trim_end_matches("/v2");
        let path = path.to_owned();
        url.set_path(&path);
        Some(url)
    };
    trimmed(a).is_some_and(|a| Some(a) == trimmed(b))
}
