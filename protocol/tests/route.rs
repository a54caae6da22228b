//! The grammar of registry requests: every form of naming an upstream, for every endpoint.

use std::borrow::Cow;

use millrace_protocol::oci::route::{
    Endpoint, Resource, Route, Upstream, decode_path, query_push, query_value, query_without,
};
use millrace_protocol::oci::{Digest, InvalidReference};
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Names and aliases of the upstreams that these tests have configured.
const NAMES: [(&str, &str); 9] = [
    ("docker.io", "docker.io"),
    ("index.docker.io", "docker.io"),
    ("dockerhub", "docker.io"),
    ("gcr.io", "gcr.io"),
    ("registry.corp:5000", "corp"),
    ("registry.corp_5000", "corp"),
    ("corp", "corp"),
    ("localhost", "local"),
    ("127.0.0.1:7702", "local"),
];

fn lookup(name: &str) -> Option<&'static str> {
    NAMES
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, upstream)| upstream)
}

fn parse<'a>(path: &'a str, query: &'a str) -> Route<'a, &'static str> {
    Route::parse(path, (!query.is_empty()).then_some(query), lookup)
}

/// What a route says, in one line: `<upstream> <repository> <resource>`.
fn told(path: &str, query: &str) -> String {
    let path = decode_path(path).expect("UTF-8");
    let route = parse(&path, query);
    let upstream = match &route.upstream {
        Upstream::Known(name) => (*name).to_owned(),
        Upstream::Unknown(name) => format!("?{name}"),
        Upstream::Default => "default".to_owned(),
    };
    let asked = match &route.endpoint {
        Endpoint::Ping => "ping".to_owned(),
        Endpoint::Catalog => "catalog".to_owned(),
        Endpoint::Unknown => "unknown".to_owned(),
        Endpoint::Repository {
            repository,
            resource,
            ..
        } => {
            let repository = match repository {
                Ok(name) => name.as_str(),
                Err(_) => "!",
            };
            format!("{repository} {}", describe(resource))
        }
    };
    format!("{upstream} {asked}")
}

fn describe(resource: &Resource) -> String {
    match resource {
        Resource::Manifest(Ok(reference)) => format!("manifests/{reference}"),
        Resource::Manifest(Err(InvalidReference::Tag)) => "manifests/!tag".to_owned(),
        Resource::Manifest(Err(_)) => "manifests/!digest".to_owned(),
        Resource::Blob(Ok(digest)) => format!("blobs/{digest}"),
        Resource::Blob(Err(_)) => "blobs/!".to_owned(),
        Resource::Tags => "tags/list".to_owned(),
        Resource::Referrers(Ok(digest)) => format!("referrers/{digest}"),
        Resource::Referrers(Err(_)) => "referrers/!".to_owned(),
        Resource::Upload => "upload".to_owned(),
    }
}

/// Every resource of a repository, as it stands behind the name.
fn resources() -> Vec<String> {
    vec![
        "manifests/latest".to_owned(),
        format!("manifests/{DIGEST}"),
        format!("blobs/{DIGEST}"),
        format!("referrers/{DIGEST}"),
        "tags/list".to_owned(),
    ]
}

#[test]
fn every_form_names_the_same_thing_on_every_endpoint() {
    for (name, upstream) in NAMES {
        let escaped = name.replace(':', "%3A");
        for resource in resources() {
            let expected = format!("{upstream} library/alpine {resource}");
            for (path, query) in [
                (
                    format!("/v2/library/alpine/{resource}"),
                    format!("ns={escaped}"),
                ),
                (
                    format!("/v2/library/alpine/{resource}"),
                    format!("x=1&ns={name}&n=5"),
                ),
                (
                    format!("/v2/{name}/library/alpine/{resource}"),
                    String::new(),
                ),
                (
                    format!("/v2/{escaped}/library/alpine/{resource}"),
                    String::new(),
                ),
                (
                    format!("/{name}/v2/library/alpine/{resource}"),
                    String::new(),
                ),
                (
                    format!("/{name}/v2/library/alpine/{resource}"),
                    format!("ns={escaped}"),
                ),
                (
                    format!("/{name}/v2/library/alpine/{resource}"),
                    "ns=gcr.io".to_owned(),
                ),
                (
                    format!("/v2/{name}/library/alpine/{resource}"),
                    format!("ns={escaped}"),
                ),
                (
                    format!("/v2/{name}/library/alpine/{resource}"),
                    "ns=other.example".to_owned(),
                ),
                (
                    format!("/{name}/library/alpine/{resource}"),
                    format!("ns={escaped}"),
                ),
                (format!("/{name}/library/alpine/{resource}"), String::new()),
            ] {
                assert_eq!(told(&path, &query), expected, "{path}?{query}");
            }
        }
    }
}

#[test]
fn no_name_means_the_default() {
    for resource in resources() {
        for query in ["", "ns=", "n=1"] {
            let path = format!("/v2/library/alpine/{resource}");
            assert_eq!(
                told(&path, query),
                format!("default library/alpine {resource}")
            );
        }
        let path = format!("/v2/alpine/{resource}");
        assert_eq!(told(&path, ""), format!("default alpine {resource}"));
    }
}

#[test]
fn an_upstream_that_is_not_configured_stays_unknown() {
    for (path, query) in [
        ("/v2/a/b/manifests/latest", "ns=evil.example"),
        ("/v2/evil.example/a/b/manifests/latest", ""),
        ("/evil.example/v2/a/b/manifests/latest", ""),
        ("/evil.example/v2/a/b/manifests/latest", "ns=docker.io"),
        ("/v2/evil.example/a/b/manifests/latest", "ns=evil.example"),
    ] {
        let told = told(path, query);
        assert!(told.starts_with("?evil.example "), "{path}?{query}: {told}");
    }
    assert!(told("/v2/registry:1/a/manifests/x", "").starts_with("?registry:1 "));
}

#[test]
fn only_the_table_decides_what_is_stripped() {
    assert_eq!(
        told("/v2/example.com/project/img/manifests/1", "ns=gcr.io"),
        "gcr.io example.com/project/img manifests/1",
        "a repository of gcr.io that begins with a domain"
    );
    assert_eq!(
        told("/gcr.io/v2/example.com/project/img/manifests/1", ""),
        "gcr.io example.com/project/img manifests/1"
    );
    assert_eq!(
        told("/v2/corp/manifests/latest", "ns=docker.io"),
        "docker.io corp manifests/latest",
        "an alias that is the whole name is a repository"
    );
    assert_eq!(
        told("/v2/my.app/manifests/1", ""),
        "default my.app manifests/1"
    );
}

#[test]
fn names_may_have_components_that_look_like_endpoints() {
    for (path, expected) in [
        (
            "/v2/x/blobs/manifests/manifests/latest",
            "default x/blobs/manifests manifests/latest",
        ),
        ("/v2/v2/v2/tags/list", "default v2/v2 tags/list"),
        ("/v2/tags/list/tags/list", "default tags/list tags/list"),
        ("/v2/x/tags/manifests/list", "default x/tags manifests/list"),
        (
            "/v2/x/blobs/uploads/manifests/a",
            "default x/blobs/uploads manifests/a",
        ),
        (
            "/v2/docker.io/manifests/manifests/a",
            "docker.io manifests manifests/a",
        ),
    ] {
        assert_eq!(told(path, ""), expected, "{path}");
    }
}

#[test]
fn what_is_not_a_resource_of_a_repository() {
    for (path, expected) in [
        ("/v2", "default ping"),
        ("/v2/", "default ping"),
        ("/docker.io/v2", "docker.io ping"),
        ("/docker.io/v2/", "docker.io ping"),
        ("/nobody.example/v2/", "?nobody.example ping"),
        ("/v2/_catalog", "default catalog"),
        ("/corp/v2/_catalog", "corp catalog"),
        ("/v2/_oci/ext/discover", "default unknown"),
        ("/extensions/v2/a/signatures/b", "?extensions unknown"),
        ("/v2/a/blobs/uploads/", "default a upload"),
        ("/v2/a/blobs/uploads/3f", "default a upload"),
        ("/v2/a/blobs/uploads", "default a upload"),
        ("/v2/a/uploads/3f", "default unknown"),
        ("/v2/a/manifests/latest/", "default unknown"),
        ("/v2/manifests/latest", "default unknown"),
        ("/v2x/a/manifests/latest", "default unknown"),
        ("/evil.example/a/manifests/latest", "default unknown"),
        ("/docker.io/favicon.ico", "default unknown"),
        ("/", "default unknown"),
        ("", "default unknown"),
        ("*", "default unknown"),
    ] {
        assert_eq!(told(path, ""), expected, "{path}");
    }
}

#[test]
fn malformed_parts_are_named_one_by_one() {
    for (path, expected) in [
        (
            "/v2/a/manifests/.INVALID_MANIFEST_NAME",
            "default a manifests/!tag",
        ),
        ("/v2/a/manifests/", "default a manifests/!tag"),
        (
            "/v2/a/manifests/sha256:totallywrong",
            "default a manifests/!digest",
        ),
        ("/v2/a/blobs/sha256:totallywrong", "default a blobs/!"),
        (
            "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e",
            "default a blobs/!",
        ),
        ("/v2/a/referrers/latest", "default a referrers/!"),
        ("/v2/A/manifests/latest", "default ! manifests/latest"),
        (
            "/v2/docker.io/../../etc/passwd/manifests/latest",
            "docker.io ! manifests/latest",
        ),
        (
            "/v2/a%2f..%2f..%2fb/manifests/latest",
            "default ! manifests/latest",
        ),
        ("/v2//manifests/latest", "default ! manifests/latest"),
    ] {
        assert_eq!(told(path, ""), expected, "{path}");
    }
    assert_eq!(decode_path("/v2/%ff/manifests/x"), None);
}

#[test]
fn the_name_stays_as_the_client_wrote_it() {
    let route = parse("/v2/docker.io/library/alpine/tags/list", "");
    assert!(
        matches!(
            route.endpoint,
            Endpoint::Repository {
                name: "docker.io/library/alpine",
                ..
            }
        ),
        "{route:?}"
    );
}

#[test]
fn a_link_keeps_the_prefix_and_the_namespace() {
    for (path, query, link) in [
        (
            "/v2/a/tags/list",
            "",
            "</v2/a/tags/list?n=1&last=x>; rel=\"next\"",
        ),
        (
            "/docker.io/v2/library/a/tags/list",
            "n=1",
            "</docker.io/v2/library/a/tags/list?n=1&last=x>; rel=\"next\"",
        ),
        (
            "/v2/registry.corp:5000/a/tags/list",
            "n=1&ns=registry.corp%3A5000",
            "</v2/registry.corp:5000/a/tags/list?n=1&last=x&ns=registry.corp:5000>; rel=\"next\"",
        ),
    ] {
        assert_eq!(parse(path, query).next_link("n=1&last=x"), link);
        assert_eq!(parse(path, query).next_link("ns=other&n=1&last=x"), link);
    }
    let hostile = parse("/v2/a/tags/list", "").next_link("a=>\r\n\"<b>");
    assert_eq!(
        hostile,
        "</v2/a/tags/list?a=%3E%0D%0A%22%3Cb%3E>; rel=\"next\""
    );
}

#[test]
fn queries_are_read_and_rewritten() {
    let query = "n=5&ns=a%3A1&artifactType=application/x+json&last=%2Fz&flag&n=6";
    assert_eq!(query_value(query, "n"), Some(Cow::Borrowed("5")));
    assert_eq!(query_value(query, "ns").as_deref(), Some("a:1"));
    assert_eq!(
        query_value(query, "artifactType").as_deref(),
        Some("application/x+json")
    );
    assert_eq!(query_value(query, "flag").as_deref(), Some(""));
    assert_eq!(query_value(query, "absent"), None);
    assert_eq!(query_value("x=%ff", "x"), None);
    assert_eq!(
        query_without(query, &["ns", "n"]),
        "artifactType=application/x+json&last=%2Fz&flag="
    );
    let mut built = query_without("ns=a", &["ns"]);
    query_push(&mut built, "n", "5");
    query_push(&mut built, "last", "a&b=c");
    assert_eq!(built, "n=5&last=a%26b%3Dc");
}

proptest! {
    #[test]
    fn no_url_breaks_the_parser(path in "\\PC{0,60}", query in "\\PC{0,40}") {
        if let Some(path) = decode_path(&path) {
            let _ = parse(&path, &query).next_link(&query);
        }
    }

    #[test]
    fn no_sequence_of_components_breaks_the_parser(
        components in proptest::collection::vec(component(), 0..8),
        query in "(ns=[a-z.:%0-9]{0,8})?",
    ) {
        let path = format!("/{}", components.join("/"));
        if let Some(path) = decode_path(&path) {
            let route = parse(&path, &query);
            if let Endpoint::Repository { name, .. } = &route.endpoint {
                prop_assert!(path.contains(name));
            }
            let link = route.next_link("n=1");
            prop_assert!(link.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{}", link);
        }
    }

    #[test]
    fn a_link_leads_back_to_the_same_list(
        form in 0usize..5,
        (name, _) in proptest::sample::select(NAMES.to_vec()),
        repository in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,3}",
        last in "[a-zA-Z0-9._&=?#<> -]{0,8}",
    ) {
        let (path, query) = match form {
            0 => (format!("/v2/{repository}/tags/list"), format!("ns={}", name.replace(':', "%3A"))),
            1 => (format!("/v2/{name}/{repository}/tags/list"), String::new()),
            2 => (format!("/{name}/v2/{repository}/tags/list"), String::new()),
            3 => (format!("/v2/{name}/{repository}/tags/list"), format!("ns={name}")),
            _ => (format!("/v2/{repository}/tags/list"), String::new()),
        };
        let route = parse(&path, &query);
        let mut page = "n=1".to_owned();
        query_push(&mut page, "last", &last);
        let link = route.next_link(&page);
        let url = link.strip_prefix('<').and_then(|l| l.split_once('>')).expect("a link").0;
        let (next_path, next_query) = url.split_once('?').expect("a query");
        let next_path = decode_path(next_path).expect("UTF-8");
        let next = parse(&next_path, next_query);
        prop_assert_eq!(&next.upstream, &route.upstream);
        prop_assert_eq!(&next.endpoint, &route.endpoint);
        let next_last = query_value(next_query, "last");
        prop_assert_eq!(next_last, Some(Cow::Owned(last)));
    }

    #[test]
    fn any_digest_is_found_behind_any_name(content: Vec<u8>, repository in "[a-z]{1,5}(/blobs){0,2}") {
        let digest = Digest::of(millrace_protocol::oci::Algorithm::Sha512, &content);
        let path = format!("/v2/{repository}/blobs/{digest}");
        prop_assert_eq!(told(&path, ""), format!("default {repository} blobs/{digest}"));
    }
}

/// Components that have a meaning, and some that have none.
fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "v2",
            "manifests",
            "blobs",
            "uploads",
            "tags",
            "list",
            "referrers",
            "_catalog",
            "docker.io",
            "corp",
            "localhost",
            "evil.example",
            "",
            ".",
            "..",
            DIGEST,
            "%2f",
            "%00",
        ])
        .prop_map(str::to_owned),
        "[a-z<>\"%0-9]{0,4}",
    ]
}
