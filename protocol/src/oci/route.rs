//! The grammar of registry requests: which upstream, repository and resource a URL names.
//!
//! Clients name an upstream in five ways, alone and combined:
//!
//! ```text
//! A  /v2/<repository>/…?ns=<upstream>         containerd, BuildKit
//! B  /v2/<upstream>/<repository>/…            podman, crane, people
//! C  /<upstream>/v2/<repository>/…            dockerd's registry-mirrors with a path
//! D  /v2/<upstream>/<repository>/…?ns=<upstream>
//! E  /v2/<repository>/…                       dockerd's registry-mirrors
//! ```
//!
//! Parsing never fails and never goes by what looks like a host where a table can be asked: the
//! caller says which names it knows. Methods, rights and answers belong to the registry room.
//! Source: CLIENT-CONTRACT section 1 (N1 to N8); OCI Distribution Spec v1.1.1, "Endpoints".

use std::borrow::Cow;

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode,
};

use super::digest::{Digest, InvalidDigest};
use super::reference::{InvalidReference, Reference, RepositoryName};

/// What must be escaped in a query that goes into a `Link` header: all that RFC 3986 does not
/// allow there. `%` stays, because the query is already in its escaped form.
const QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// What must be escaped in one value of a query, or in a path beside its slashes.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// [`COMPONENT`] with slashes left alone.
const PATH: &AsciiSet = &COMPONENT.remove(b'/');

/// A request's URL, taken apart. `U` is what the caller's table holds for a known upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'a, U> {
    /// The upstream that the request is about.
    pub upstream: Upstream<'a, U>,
    /// What is asked for.
    pub endpoint: Endpoint<'a>,
    path: &'a str,
    ns: Option<Cow<'a, str>>,
}

/// The upstream that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream<'a, U> {
    /// A name or alias that the caller's table has.
    Known(U),
    /// Something that names an upstream and is not in the table.
    Unknown(Cow<'a, str>),
    /// None is named, so the default is meant.
    Default,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// end-1: whether this is a registry.
    Ping,
    /// The list of repositories (Docker's API, not in the OCI specification).
    Catalog,
    /// Something within a repository.
    Repository {
        /// The name as the client wrote it, with the upstream in front in forms B and D.
        name: &'a str,
        /// The repository within its upstream.
        repository: Result<RepositoryName, InvalidReference>,
        /// Which of the repository's resources.
        resource: Resource,
    },
    /// Nothing that this API has.
    Unknown,
}

/// A resource of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// end-3.
    Manifest(Result<Reference, InvalidReference>),
    /// end-2.
    Blob(Result<Digest, InvalidDigest>),
    /// end-8.
    Tags,
    /// end-12.
    Referrers(Result<Digest, InvalidDigest>),
    /// An upload, or where uploads begin; a pull-through cache has none.
    Upload,
}

/// Undoes the escapes of a URL's path. Costs nothing when there are none, which is usual.
///
/// Returns `None` when the result is not UTF-8: no resource has such a name.
pub fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(path).decode_utf8().ok()
}

impl<'a, U> Route<'a, U> {
    /// Takes a request's URL apart.
    ///
    /// `path` comes from [`decode_path`], `query` is still escaped. `lookup` is asked whether a
    /// text is *exactly* the name or an alias of a configured upstream.
    pub fn parse(
        path: &'a str,
        query: Option<&'a str>,
        lookup: impl Fn(&str) -> Option<U>,
    ) -> Self {
        let ns = query
            .and_then(|query| query_value(query, "ns"))
            .filter(|ns| !ns.is_empty());
        let (upstream, endpoint) = match split_api(path, &lookup) {
            Some((prefix, rest)) => resolve(prefix, rest, ns.as_ref(), &lookup),
            None => (Upstream::Default, Endpoint::Unknown),
        };
        Self {
            upstream,
            endpoint,
            path,
            ns,
        }
    }

    /// Returns the value of a `Link` header to the next page of this list.
    ///
    /// `query` is the escaped query of that page; an `ns` in it is dropped. The link is relative and names
    /// the upstream as this request did, whatever the form, so that it leads back here (E5).
    pub fn next_link(&self, query: &str) -> String {
        let path = utf8_percent_encode(self.path, PATH);
        // An upstream that is itself a cache may have put its own `ns` into the page's query.
        let query = query_without(query, &["ns"]);
        let query = utf8_percent_encode(&query, QUERY);
        match &self.ns {
            Some(ns) => {
                let ns = utf8_percent_encode(ns, COMPONENT);
                format!("<{path}?{query}&ns={ns}>; rel=\"next\"")
            }
            None => format!("<{path}?{query}>; rel=\"next\""),
        }
    }
}

/// Splits off what comes before the name: `/v2/`, or `/<upstream>/v2/` (form C), or `/<known
/// upstream>/` when the client left out `v2` (N8). Returns the upstream, if any, and the rest.
fn split_api<'a, U>(
    path: &'a str,
    lookup: &impl Fn(&str) -> Option<U>,
) -> Option<(Option<&'a str>, &'a str)> {
    let path = path.strip_prefix('/')?;
    if let Some(rest) = strip_version(path) {
        return Some((None, rest));
    }
    let (prefix, rest) = path.split_once('/')?;
    match strip_version(rest) {
        Some(rest) => Some((Some(prefix), rest)),
        None if lookup(prefix).is_some() && split_resource(rest).is_some() => {
            Some((Some(prefix), rest))
        }
        None => None,
    }
}

/// Strips the component `v2` and the slash behind it.
fn strip_version(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("v2")?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix('/')
    }
}

/// Decides what `rest`, the path behind `/v2/`, is about, and which upstream: the prefix of form
/// C, else a known first component, else `ns`, else a first component that can only be a host,
/// else the default (N3).
fn resolve<'a, U>(
    prefix: Option<&'a str>,
    rest: &'a str,
    ns: Option<&Cow<'a, str>>,
    lookup: &impl Fn(&str) -> Option<U>,
) -> (Upstream<'a, U>, Endpoint<'a>) {
    let named = |name: Cow<'a, str>| match lookup(&name) {
        Some(known) => Upstream::Known(known),
        None => Upstream::Unknown(name),
    };
    let outside = || match (prefix, ns) {
        (Some(prefix), _) => Some(named(Cow::Borrowed(prefix))),
        (None, Some(ns)) => Some(named(ns.clone())),
        (None, None) => None,
    };
    let Some((name, resource)) = split_resource(rest) else {
        let endpoint = match rest {
            "" => Endpoint::Ping,
            "_catalog" => Endpoint::Catalog,
            _ => Endpoint::Unknown,
        };
        return (outside().unwrap_or(Upstream::Default), endpoint);
    };
    let inside = name.split_once('/').filter(|_| prefix.is_none());
    let known = inside.and_then(|(first, repository)| Some((lookup(first)?, repository)));
    let (upstream, repository) = match known {
        Some((known, repository)) => (Upstream::Known(known), repository),
        None => match (outside(), inside) {
            (Some(upstream), _) => (upstream, name),
            (None, Some((first, repository))) if can_only_be_a_host(first) => {
                (Upstream::Unknown(Cow::Borrowed(first)), repository)
            }
            (None, _) => (Upstream::Default, name),
        },
    };
    let endpoint = Endpoint::Repository {
        name,
        repository: repository.parse(),
        resource,
    };
    (upstream, endpoint)
}

/// Docker's own rule for the first of several components of a name.
fn can_only_be_a_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

/// Splits `<name>/<resource>`, from the right: a name may have components called `blobs`.
fn split_resource(rest: &str) -> Option<(&str, Resource)> {
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some((name, Resource::Tags));
    }
    let (head, last) = rest.rsplit_once('/')?;
    let (name, kind) = head.rsplit_once('/')?;
    let resource = match kind {
        "manifests" => Resource::Manifest(last.parse()),
        "blobs" if last == "uploads" => Resource::Upload,
        "blobs" => Resource::Blob(last.parse()),
        "referrers" => Resource::Referrers(last.parse()),
        "uploads" => return Some((name.strip_suffix("/blobs")?, Resource::Upload)),
        _ => return None,
    };
    Some((name, resource))
}

/// Returns the first value of `key` in an escaped query, unescaped.
///
/// A `+` stays a plus: media types have them, and nothing that is asked for here has spaces.
/// A value that is not UTF-8 counts as absent.
pub fn query_value<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    let (_, value) = pairs(query).find(|(found, _)| *found == key)?;
    percent_decode_str(value).decode_utf8().ok()
}

/// Returns the escaped query without the pairs of these keys; may be empty.
pub fn query_without(query: &str, keys: &[&str]) -> String {
    let mut kept = String::with_capacity(query.len());
    for (key, value) in pairs(query).filter(|(key, _)| !keys.contains(key)) {
        push_pair(&mut kept, key, value);
    }
    kept
}

/// Adds a pair to an escaped query; `value` is escaped here, `key` must not need it.
pub fn query_push(query: &mut String, key: &str, value: &str) {
    let value: Cow<'_, str> = utf8_percent_encode(value, COMPONENT).into();
    push_pair(query, key, &value);
}

fn push_pair(query: &mut String, key: &str, escaped: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(key);
    query.push('=');
    query.push_str(escaped);
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}
