//! How clients name an upstream, and what both conformance suites ask of a registry that is read.

use anyhow::Result;
use millrace_cluster_tests::fake::{Fake, Image, assert_whole, code_of, noise, sha256};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_cluster_tests::node::Node;
use serde_json::json;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Three upstreams, two of which own a repository of the same name.
struct Forms {
    hub: Fake,
    corp: Fake,
    gcr: Fake,
    node: Node,
    app: Image,
    tool: Image,
    domain: Image,
}

async fn forms() -> Result<Forms> {
    let (hub, corp, gcr) = (
        Fake::start().await?,
        Fake::start().await?,
        Fake::start().await?,
    );
    let app = hub.add_image("library/app", "1.0", &[noise(1, 3_000)]);
    let tool = corp.add_image("library/app", "1.0", &[noise(2, 3_000)]);
    let domain = gcr.add_image("example.com/project/img", "1.0", &[noise(3, 3_000)]);
    let corp_name = corp.address().to_string();
    let node = Node::builder()
        .upstream("docker.io", &hub.url())
        .upstream(&corp_name, &corp.url())
        .set(&format!("upstreams/{corp_name}/aliases"), json!(["corp"]))
        .upstream("gcr.io", &gcr.url())
        .start()
        .await?;
    Ok(Forms {
        hub,
        corp,
        gcr,
        node,
        app,
        tool,
        domain,
    })
}

/// Every way to name `repository` of the upstream `name` before and after an endpoint's own path.
fn namings(name: &str, prefix: &str, repository: &str) -> Vec<(String, String)> {
    let ns = name.replace(':', "%3A");
    let plain = |before: String, after: String| (before, after);
    vec![
        plain(format!("/v2/{repository}"), format!("ns={ns}")),
        plain(format!("/v2/{prefix}/{repository}"), String::new()),
        plain(format!("/{prefix}/v2/{repository}"), String::new()),
        plain(format!("/{prefix}/v2/{repository}"), format!("ns={ns}")),
        plain(format!("/v2/{prefix}/{repository}"), format!("ns={ns}")),
        plain(
            format!("/v2/{repository}"),
            format!("unknown=1&ns={ns}&x=y"),
        ),
    ]
}

/// Asks for everything of an image under one naming.
async fn everything(node: &Node, before: &str, query: &str, image: &Image) -> Result<()> {
    let with = |path: String, more: &str| {
        let query = [query, more]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("&");
        if query.is_empty() {
            format!("{before}{path}")
        } else {
            format!("{before}{path}?{query}")
        }
    };
    for reference in ["1.0".to_owned(), image.manifest.to_string()] {
        let target = with(format!("/manifests/{reference}"), "");
        assert_whole(
            &node.send(Request::get(&target)).await?,
            &image.manifest_bytes,
        );
        let head = node.send(Request::head(&target)).await?;
        assert_manifest_headers(&head, image, &target);
    }
    let target = with(format!("/blobs/{}", image.layers[0]), "");
    let blob = node.send(Request::get(&target)).await?;
    assert_eq!(
        (blob.status(), sha256(&blob.body)),
        (200, image.layers[0]),
        "{target}"
    );
    let part = node
        .send(Request::get(&target).header("Range", "bytes=10-19"))
        .await?;
    assert_eq!(
        (part.status(), &part.body[..]),
        (206, &blob.body[10..20]),
        "{target}"
    );
    let head = node.send(Request::head(&target)).await?;
    assert_blob_headers(&head, image, &target);
    let tags = node
        .send(Request::get(&with("/tags/list".to_owned(), "")))
        .await?;
    assert_eq!(tags.json()?["tags"], json!(["1.0"]), "{before}");
    let target = with(format!("/referrers/{}", image.manifest), "");
    let referrers = node.send(Request::get(&target)).await?;
    assert_eq!(
        (referrers.status(), referrers.header("content-type")),
        (200, Some(INDEX)),
        "{target}"
    );
    Ok(())
}

/// Section 3 of the contract, for `HEAD` of a manifest.
fn assert_manifest_headers(head: &Answer, image: &Image, target: &str) {
    let digest = image.manifest.to_string();
    let length = image.manifest_bytes.len().to_string();
    for (name, value) in [
        ("content-type", MANIFEST),
        ("content-length", &length),
        ("docker-content-digest", &digest),
        ("etag", &format!("\"{digest}\"")),
        ("docker-distribution-api-version", "registry/2.0"),
    ] {
        assert_eq!(head.header(name), Some(value), "{target}: {name}");
    }
    assert_eq!((head.status(), head.body.len()), (200, 0), "{target}");
    assert_eq!(head.header("content-encoding"), None, "{target}");
}

/// Section 3 of the contract, for `HEAD` of a blob.
fn assert_blob_headers(head: &Answer, image: &Image, target: &str) {
    let digest = image.layers[0].to_string();
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-length", "3000"),
        ("docker-content-digest", &*digest),
        ("accept-ranges", "bytes"),
    ] {
        assert_eq!(head.header(name), Some(value), "{target}: {name}");
    }
    assert_eq!((head.status(), head.body.len()), (200, 0), "{target}");
}

#[tokio::test]
async fn every_form_reaches_its_upstream_on_every_endpoint() -> Result<()> {
    let forms = forms().await?;
    let corp = forms.corp.address().to_string();
    for (name, prefix, image) in [
        ("docker.io", "docker.io", &forms.app),
        ("docker.io", "dockerhub", &forms.app),
        ("registry-1.docker.io", "index.docker.io", &forms.app),
        (&*corp, "corp", &forms.tool),
        (&*corp, &*corp.replace(':', "_"), &forms.tool),
    ] {
        for (before, query) in namings(name, prefix, "library/app") {
            everything(&forms.node, &before, &query, image).await?;
        }
    }
    assert_eq!(forms.gcr.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_name_alone_is_docker_hub_and_one_component_is_library() -> Result<()> {
    let forms = forms().await?;
    for before in [
        "/v2/library/app",
        "/v2/app",
        "/v2/docker.io/app",
        "/dockerhub/v2/app",
    ] {
        everything(&forms.node, before, "", &forms.app).await?;
    }
    for record in forms.hub.records() {
        assert!(
            record.target.starts_with("/v2/library/app/"),
            "{}",
            record.target
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_repository_that_looks_like_a_domain_is_a_repository() -> Result<()> {
    let forms = forms().await?;
    for (before, query) in namings("gcr.io", "gcr.io", "example.com/project/img") {
        everything(&forms.node, &before, &query, &forms.domain).await?;
    }
    Ok(())
}

#[tokio::test]
async fn names_may_contain_the_words_of_the_grammar() -> Result<()> {
    let forms = forms().await?;
    for repository in ["blobs/manifests", "tags/list/app", "manifests/referrers"] {
        let image = forms.hub.add_image(repository, "1.0", &[noise(4, 3_000)]);
        everything(
            &forms.node,
            &format!("/v2/docker.io/{repository}"),
            "",
            &image,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_blob_is_served_although_its_manifest_never_was() -> Result<()> {
    let forms = forms().await?;
    let target = format!("/v2/library/app/blobs/{}?ns=docker.io", forms.app.layers[0]);
    let answer = forms.node.send(Request::get(&target)).await?;
    assert_whole(&answer, &noise(1, 3_000));
    Ok(())
}

#[tokio::test]
async fn an_etag_that_matches_saves_the_body() -> Result<()> {
    let forms = forms().await?;
    let target = "/v2/docker.io/library/app/manifests/1.0";
    let etag = format!("\"{}\"", forms.app.manifest);
    for (value, status) in [(&*etag, 304), ("\"other\"", 200), ("*", 304)] {
        let request = Request::get(target).header("If-None-Match", value);
        assert_eq!(forms.node.send(request).await?.status(), status, "{value}");
    }
    Ok(())
}

#[tokio::test]
async fn tags_are_listed_in_pages_that_stay_at_the_node() -> Result<()> {
    let forms = forms().await?;
    for tag in ["a", "b", "c", "d"] {
        forms.hub.set_tag("library/app", tag, &forms.app.manifest);
    }
    for (before, query) in namings("docker.io", "dockerhub", "library/app") {
        let and = if query.is_empty() {
            String::new()
        } else {
            format!("&{query}")
        };
        let page = forms
            .node
            .send(Request::get(&format!("{before}/tags/list?n=2{and}")))
            .await?;
        assert_eq!(
            page.json()?["tags"],
            json!(["1.0", "a"]),
            "{before} {query}"
        );
        let link = page.header("link").unwrap_or_default().to_owned();
        assert!(link.ends_with("rel=\"next\""), "{link}");
        let next = link
            .trim_start_matches('<')
            .split('>')
            .next()
            .unwrap_or_default();
        assert!(next.starts_with(&format!("{before}/tags/list?")), "{next}");
        let page = forms.node.send(Request::get(next)).await?;
        assert_eq!(page.json()?["tags"], json!(["b", "c"]), "{next}");
        let last = forms
            .node
            .send(Request::get(&format!("{before}/tags/list?last=c{and}")))
            .await?;
        assert_eq!(last.json()?["tags"], json!(["d"]), "{before} {query}");
        assert_eq!(last.header("link"), None);
        let none = forms
            .node
            .send(Request::get(&format!("{before}/tags/list?n=0{and}")))
            .await?;
        assert_eq!(
            (none.json()?["tags"].clone(), none.header("link")),
            (json!([]), None)
        );
    }
    Ok(())
}

/// Path behind the repository's, the statuses and the codes that the suites accept. `MANIFEST`,
/// `CONFIG`, `LAYER` stand for digests that exist, `ABSENT` for one that does not.
const READ_ONLY_CASES: &[(&str, &[u16], &[&str])] = &[
    ("manifests/1.0", &[200], &[]),
    ("manifests/MANIFEST", &[200], &[]),
    ("blobs/CONFIG", &[200], &[]),
    ("blobs/LAYER", &[200], &[]),
    ("blobs/ABSENT", &[404], &["BLOB_UNKNOWN"]),
    ("manifests/ABSENT", &[404], &["MANIFEST_UNKNOWN"]),
    (
        "manifests/.INVALID_MANIFEST_NAME",
        &[404],
        &["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "MANIFEST_INVALID"],
    ),
    ("manifests/no-such-tag", &[404], &["MANIFEST_UNKNOWN"]),
    (
        "blobs/sha256:totallywrong",
        &[400, 404],
        &["DIGEST_INVALID", "BLOB_UNKNOWN"],
    ),
    (
        "manifests/sha256:totallywrong",
        &[400, 404],
        &["DIGEST_INVALID", "MANIFEST_UNKNOWN"],
    ),
    (
        "manifests/sha256:baddigeststring",
        &[400, 404],
        &["DIGEST_INVALID", "MANIFEST_UNKNOWN"],
    ),
    ("tags/list", &[200], &[]),
    ("referrers/ABSENT", &[200], &[]),
    ("referrers/sha256:totallywrong", &[400], &["DIGEST_INVALID"]),
];

/// The read-only cases of both conformance suites, as requests.
#[tokio::test]
async fn the_conformance_suites_read_only_cases_hold() -> Result<()> {
    let forms = forms().await?;
    let base = "/v2/docker.io/library/app";
    let absent = sha256(b"never pushed").to_string();
    for (case, statuses, codes) in READ_ONLY_CASES {
        let case = case
            .replace("MANIFEST", &forms.app.manifest.to_string())
            .replace("CONFIG", &forms.app.config.to_string())
            .replace("LAYER", &forms.app.layers[0].to_string())
            .replace("ABSENT", &absent);
        // The tag that no registry may have is spelled with a word of the table.
        let case = case.replace(
            &format!(".INVALID_{}_NAME", forms.app.manifest),
            ".INVALID_MANIFEST_NAME",
        );
        let target = format!("{base}/{case}");
        let answer = forms.node.send(Request::get(&target)).await?;
        assert!(
            statuses.contains(&answer.status()),
            "{target}: {}",
            answer.status()
        );
        let code = code_of(&answer).unwrap_or_default();
        assert!(
            answer.status() < 400 || codes.contains(&code.as_str()),
            "{target}: {code}"
        );
        if !target.contains("/tags/") && !target.contains("/referrers/") {
            head_equals_get(&forms, &target, &answer).await?;
        }
    }
    let ping = forms.node.send(Request::get("/v2/")).await?;
    assert_eq!(ping.status(), 200);
    let absent = forms
        .node
        .send(Request::get("/v2/docker.io/library/absent/tags/list"))
        .await?;
    assert_eq!(
        (absent.status(), code_of(&absent).as_deref()),
        (404, Some("NAME_UNKNOWN"))
    );
    let tags = forms
        .node
        .send(Request::get(&format!("{base}/tags/list")))
        .await?;
    assert_eq!(tags.json()?["name"], json!("docker.io/library/app"));
    Ok(())
}

async fn head_equals_get(forms: &Forms, target: &str, get: &Answer) -> Result<()> {
    let head = forms.node.send(Request::head(target)).await?;
    assert_eq!(
        (head.status(), head.body.len()),
        (get.status(), 0),
        "HEAD {target}"
    );
    if get.status() == 200 {
        assert_eq!(
            head.header("content-length"),
            get.header("content-length"),
            "{target}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_catalog_lists_what_was_pulled() -> Result<()> {
    let forms = forms().await?;
    everything(&forms.node, "/v2/docker.io/library/app", "", &forms.app).await?;
    everything(
        &forms.node,
        "/v2/gcr.io/example.com/project/img",
        "",
        &forms.domain,
    )
    .await?;
    let catalog = forms.node.send(Request::get("/v2/_catalog")).await?;
    let expected = json!(["docker.io/library/app", "gcr.io/example.com/project/img"]);
    assert_eq!(catalog.json()?["repositories"], expected);
    Ok(())
}
