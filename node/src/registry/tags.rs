//! end-8 and the catalog: lists of names, in pages.
//!
//! Tags belong to the upstream. Some upstreams page, in whatever order; some ignore `n` and `last`
//! and give everything, or pages of their own size. Pages of the former are passed on, the latter are
//! paged here.

use http::StatusCode;
use http::header::{HeaderValue, LINK};
use millrace_protocol::oci::route::{self, Route};
use serde::Serialize;

use crate::pull::{Origin, Puller};

use super::answer::Answer;
use super::respond::{Failure, Wanted};

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: Vec<&'a str>,
}

#[derive(Serialize)]
struct Catalog<'a> {
    repositories: Vec<&'a str>,
}

/// What a client wants of a list.
struct Wish<'a> {
    query: &'a str,
    /// Most names in the answer.
    n: Option<usize>,
    /// The name after which the page begins.
    last: Option<std::borrow::Cow<'a, str>>,
}

impl<'a> Wish<'a> {
    fn of(query: Option<&'a str>) -> Self {
        let query = query.unwrap_or_default();
        Self {
            query,
            n: route::query_value(query, "n").and_then(|n| n.parse().ok()),
            last: route::query_value(query, "last").filter(|last| !last.is_empty()),
        }
    }

    /// Cuts the page down to `n` names; says from which the next one goes on, if there is one.
    fn cut<'n>(&self, names: &mut Vec<&'n str>) -> Option<&'n str> {
        let n = self.n.filter(|&n| n < names.len())?;
        names.truncate(n);
        // Zero names have no next page (CLIENT-CONTRACT E5).
        names.last().copied()
    }

    /// Writes the query of the page after `last`.
    fn after(&self, last: &str) -> String {
        let mut query = route::query_without(self.query, &["ns", "last"]);
        route::query_push(&mut query, "last", last);
        query
    }
}

/// Answers with a page of the tags of a repository, which the client calls `name`.
pub(super) async fn list<U>(
    puller: &Puller,
    origin: &Origin,
    (route, name): (&Route<'_, U>, &str),
    query: Option<&str>,
) -> Result<Answer, Failure> {
    let wish = Wish::of(query);
    let asked = asked(&wish);
    let page = puller.tags(origin, &asked).await;
    let page = page.map_err(|error| Failure::Pull(Wanted::Tags, error))?;
    let (tags, next) = select(&wish, &page.tags, page.next_query);
    let link = next.map(|query| route.next_link(&query));
    Ok(answer(&Tags { name, tags }, link))
}

/// Writes the query for the upstream.
fn asked(wish: &Wish<'_>) -> String {
    let dropped: &[&str] = match wish.n {
        // No tags are wanted, but a repository without tags and one that is unknown differ; and a
        // senseless number counts as none, so the upstream must not refuse it.
        None | Some(0) => &["ns", "n"],
        Some(_) => &["ns"],
    };
    route::query_without(wish.query, dropped)
}

/// Chooses from a page of the upstream what goes into ours, and the query of the next.
fn select<'a>(
    wish: &Wish<'_>,
    tags: &'a [String],
    next: Option<String>,
) -> (Vec<&'a str>, Option<String>) {
    let mut names: Vec<&str> = tags.iter().map(String::as_str).collect();
    if wish.n == Some(0) {
        return (Vec::new(), None);
    }
    if let Some(next) = next {
        // A page that is longer than was wanted goes out in pieces, in its order.
        let last = wish.last.as_deref();
        if let Some(seen) = names.iter().position(|&name| Some(name) == last) {
            names.drain(..=seen);
        }
        let next = wish.cut(&mut names).map_or(next, |last| wish.after(last));
        return (names, Some(next));
    }
    match wish.last.as_deref() {
        None => names.sort_unstable(),
        // The upstream has ignored `last`: it is exclusive.
        Some(last) if names.contains(&last) => {
            names.sort_unstable();
            names.retain(|&name| name > last);
        }
        Some(_) => {}
    }
    let next = wish.cut(&mut names).map(|last| wish.after(last));
    (names, next)
}

/// Answers with a page of `repositories`, written as `upstream/repository`; those of one upstream,
/// by the names they have there, if the request names one.
pub(super) fn catalog<U>(
    repositories: &[String],
    upstream: Option<&str>,
    route: &Route<'_, U>,
    query: Option<&str>,
) -> Answer {
    let wish = Wish::of(query);
    let mut names: Vec<&str> = repositories
        .iter()
        .filter_map(|name| match upstream {
            Some(upstream) => name.strip_prefix(upstream)?.strip_prefix('/'),
            None => Some(name),
        })
        .filter(|name| wish.last.as_deref().is_none_or(|last| *name > last))
        .collect();
    let next = wish.cut(&mut names).map(|last| wish.after(last));
    let link = next.map(|query| route.next_link(&query));
    let repositories = names;
    answer(&Catalog { repositories }, link)
}

fn answer(list: &impl Serialize, link: Option<String>) -> Answer {
    let body = serde_json::to_vec(list).expect("plain strings always serialise");
    let mut answer = Answer::json(StatusCode::OK, body);
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        answer.headers.insert(LINK, link);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str, tags: &[&str], next: Option<&str>) -> (String, Option<String>) {
        let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
        let wish = Wish::of(Some(query));
        let (names, next) = select(&wish, &tags, next.map(str::to_owned));
        (names.join(" "), next)
    }

    #[test]
    fn an_upstream_that_ignores_paging_is_paged_here() {
        let all = ["c", "a", "b"];
        assert_eq!(page("", &all, None), ("a b c".to_owned(), None));
        assert_eq!(
            page("n=2&ns=docker.io", &all, None),
            ("a b".to_owned(), Some("n=2&last=b".to_owned()))
        );
        assert_eq!(page("n=2&last=b", &all, None), ("c".to_owned(), None));
        assert_eq!(page("last=a", &all, None), ("b c".to_owned(), None));
        assert_eq!(page("last=c", &all, None), (String::new(), None));
        assert_eq!(page("n=3", &all, None), ("a b c".to_owned(), None));
    }

    #[test]
    fn an_upstream_that_pages_keeps_its_order() {
        let next = Some("n=2&last=v9");
        assert_eq!(
            page("n=2", &["v10", "v9"], next),
            ("v10 v9".to_owned(), next.map(str::to_owned))
        );
        assert_eq!(
            page("n=2&last=v9", &["v8", "v11"], None),
            ("v8 v11".to_owned(), None)
        );
    }

    #[test]
    fn an_upstream_that_pages_by_a_number_of_its_own_is_cut_to_the_wanted() {
        let (tags, theirs) = (["c", "a", "d", "b", "e"], Some("last=e"));
        let paged = |query: &str| page(query, &tags, theirs);
        let next = |query: &str| Some(query.to_owned());
        assert_eq!(paged("n=2"), ("c a".to_owned(), next("n=2&last=a")));
        assert_eq!(paged("n=2&last=a"), ("d b".to_owned(), next("n=2&last=b")));
        assert_eq!(paged("n=2&last=b"), ("e".to_owned(), next("last=e")));
        assert_eq!(paged(""), ("c a d b e".to_owned(), next("last=e")));
    }

    #[test]
    fn a_senseless_number_is_not_passed_on() {
        let query = |query| asked(&Wish::of(Some(query)));
        assert_eq!(query("n=many&last=a"), "last=a");
        assert_eq!(query("n=0&ns=docker.io"), "");
        assert_eq!(query("n=2&last=a"), "n=2&last=a");
    }

    #[test]
    fn no_tags_are_wanted_so_none_are_given() {
        assert_eq!(page("n=0", &["a"], None), (String::new(), None));
        assert_eq!(page("n=0", &["a"], Some("last=a")), (String::new(), None));
    }

    #[test]
    fn a_senseless_number_counts_as_none() {
        assert_eq!(page("n=-1", &["a"], None), ("a".to_owned(), None));
        assert_eq!(page("n=many&last=", &["a"], None), ("a".to_owned(), None));
    }
}
