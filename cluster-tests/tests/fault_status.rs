//! What clients are told when an upstream refuses, fails or is not there (contract F3 to F6).

use std::time::Duration;

use anyhow::Result;
use millrace_cluster_tests::fake::{
    Bearer, Canned, Fake, Guard, Scene, Then, When, assert_whole, code_of, noise, sha256,
};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_cluster_tests::node::{Node, NodeBuilder};
use tokio::time::Instant;

const DOCKER: &str = "docker/27.5.1 go/go1.22.11 kernel/6.1 os/linux arch/amd64";

/// How an upstream fails.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Status(u16),
    Limited,
    Challenge,
    Hang,
    Refused,
    Unresolvable,
}

use Trouble::{Challenge, Hang, Limited, Refused, Status, Unresolvable};

/// Starts a node in front of an upstream in trouble.
async fn troubled(
    trouble: Trouble,
    settings: impl FnOnce(NodeBuilder) -> NodeBuilder,
) -> Result<Scene> {
    let fake = Fake::start().await?;
    match trouble {
        Status(status) => fake.on(When::any("/v2/"), Then::status(status)),
        Limited => {
            let limit = Canned::status(429).header("Retry-After", "3600");
            fake.on(When::any("/v2/"), Then::answer(limit));
        }
        Challenge => fake.protect(Guard::Bearer(Bearer::at(&fake.url()).login("u", "p"))),
        Hang => fake.on(When::any("/v2/"), Then::hang()),
        Refused => fake.stop().await,
        Unresolvable => {}
    }
    Scene::of(fake, |node| {
        let node = settings(node.set("upstreams/fake/timeouts/response", "1s"));
        match trouble {
            Unresolvable => node.set("upstreams/fake/url", "http://registry.invalid"),
            _ => node,
        }
    })
    .await
}

/// Demands status and code, and that nothing of the upstream's refusal shines through.
fn expect(answer: &Answer, status: u16, codes: &[&str], what: &str) {
    let code = code_of(answer).unwrap_or_default();
    assert_eq!(answer.status(), status, "{what}: {code}");
    assert!(codes.contains(&code.as_str()), "{what}: {code}");
    let media_type = answer.header("content-type").unwrap_or_default();
    assert!(
        media_type.starts_with("application/json"),
        "{what}: {media_type}"
    );
    for header in ["www-authenticate", "retry-after", "ratelimit-limit"] {
        assert_eq!(answer.header(header), None, "{what}: {header}");
    }
}

/// Demands what F3 and F4 say for everything a client can ask for.
async fn maps_to(trouble: Trouble, listed: (u16, &[&str]), blob: (u16, &str)) -> Result<()> {
    let scene = troubled(trouble, |node| node).await?;
    let digest = sha256(b"anything");
    let tag = scene.send(scene.manifest("app", "latest")).await?;
    let by_digest = scene.send(scene.manifest("app", digest)).await?;
    let tags = scene.send(Request::get("/v2/fake/app/tags/list")).await?;
    for (answer, what) in [(tag, "tag"), (by_digest, "digest"), (tags, "tags")] {
        expect(&answer, listed.0, listed.1, &format!("{trouble:?}: {what}"));
    }
    let answer = scene.send(scene.blob("app", &digest)).await?;
    expect(&answer, blob.0, &[blob.1], &format!("{trouble:?}: blob"));
    let docker = scene.blob("app", &digest).header("User-Agent", DOCKER);
    let answer = scene.send(docker).await?;
    expect(
        &answer,
        404,
        &["BLOB_UNKNOWN"],
        &format!("{trouble:?}: docker's blob"),
    );
    let referrers = Request::get(&format!("/v2/fake/app/referrers/{digest}"));
    let answer = scene.send(referrers).await?;
    if !matches!(trouble, Status(404)) {
        let what = format!("{trouble:?}: referrers");
        expect(&answer, listed.0, listed.1, &what);
    }
    Ok(())
}

const GONE: (u16, &[&str]) = (404, &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]);
const DENIED: (u16, &[&str]) = (404, &["NAME_UNKNOWN"]);
const AWAY: (u16, &[&str]) = (503, &["UNAVAILABLE"]);

#[tokio::test]
async fn what_does_not_exist_or_is_private_is_404() -> Result<()> {
    maps_to(Status(404), GONE, (404, "BLOB_UNKNOWN")).await?;
    for trouble in [Status(401), Status(403), Challenge] {
        maps_to(trouble, DENIED, (404, "BLOB_UNKNOWN")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_fails_is_503() -> Result<()> {
    for status in [500, 502, 503, 504] {
        maps_to(Status(status), AWAY, (503, "UNAVAILABLE")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_limits_is_503_and_never_429() -> Result<()> {
    maps_to(Status(429), AWAY, (503, "UNAVAILABLE")).await?;
    maps_to(Limited, AWAY, (503, "UNAVAILABLE")).await
}

#[tokio::test]
async fn an_upstream_that_hangs_is_503_in_time() -> Result<()> {
    maps_to(Hang, AWAY, (503, "UNAVAILABLE")).await
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_503() -> Result<()> {
    maps_to(Refused, AWAY, (503, "UNAVAILABLE")).await?;
    maps_to(Unresolvable, AWAY, (503, "UNAVAILABLE")).await
}

#[tokio::test]
async fn headers_come_within_the_budget_although_the_upstream_hangs_by_default() -> Result<()> {
    let scene = Scene::start().await?;
    scene.fake.on(When::any("/v2/"), Then::hang());
    let begin = Instant::now();
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    expect(&answer, 503, &["UNAVAILABLE"], "hang");
    assert!(
        begin.elapsed() < Duration::from_secs(25),
        "{:?}",
        begin.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn what_a_blob_that_cannot_be_had_now_is_called_can_be_set() -> Result<()> {
    let digest = sha256(b"anything");
    for (setting, status) in [("404", 404), ("503", 503)] {
        let set = |node: NodeBuilder| node.set("http/unavailable_blob", setting);
        let scene = troubled(Refused, set).await?;
        for agent in [DOCKER, "containerd/2.1.0"] {
            let request = scene.blob("app", &digest).header("User-Agent", agent);
            assert_eq!(
                scene.send(request).await?.status(),
                status,
                "{setting}: {agent}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_signature_is_404_also_where_the_upstream_says_401() -> Result<()> {
    let tag = format!("sha256-{}.sig", sha256(b"an image").hex());
    for trouble in [Status(401), Status(403), Status(404), Challenge] {
        let scene = troubled(trouble, |node| node).await?;
        let answer = scene.send(scene.manifest("app", &tag)).await?;
        assert_eq!(answer.status(), 404, "{trouble:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_upstream_is_404_at_once_and_without_traffic() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = sha256(b"anything");
    for target in [
        "/v2/registry.evil.example/app/manifests/latest".to_owned(),
        "/v2/app/manifests/latest?ns=registry.evil.example".to_owned(),
        "/registry.evil.example/v2/app/manifests/latest".to_owned(),
        "/v2/localhost/app/manifests/latest".to_owned(),
        "/v2/app/manifests/latest?ns=127.0.0.1%3A22".to_owned(),
        format!("/v2/app/blobs/{digest}?ns=169.254.169.254"),
        format!(
            "/v2/app/blobs/{digest}?ns={}%3A{}",
            "localhost",
            scene.fake.address().port()
        ),
    ] {
        let begin = Instant::now();
        let answer = scene.send(Request::get(&target)).await?;
        expect(&answer, 404, &["NAME_UNKNOWN"], &target);
        assert!(begin.elapsed() < Duration::from_secs(2), "{target}");
    }
    assert_eq!(scene.fake.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn the_ping_depends_on_no_upstream() -> Result<()> {
    let scene = troubled(Hang, |node| node).await?;
    for target in ["/v2/", "/v2", "/fake/v2/"] {
        for method in ["GET", "HEAD"] {
            let begin = Instant::now();
            let answer = scene.send(Request::new(method, target)).await?;
            assert_eq!(answer.status(), 200, "{method} {target}");
            assert!(
                begin.elapsed() < Duration::from_secs(2),
                "{method} {target}"
            );
        }
    }
    assert_eq!(scene.fake.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_node_whose_upstreams_are_away_starts_and_is_ready() -> Result<()> {
    let scene = troubled(Refused, |node| node).await?;
    let ready = Request::get("/readyz").send(scene.node.debug_address());
    assert_eq!(ready.await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn referrers_fail_closed() -> Result<()> {
    let scene = Scene::start().await?;
    let subject = sha256(b"an image");
    let target = format!("/v2/fake/app/referrers/{subject}");
    scene.fake.add_blob("app", "something");
    scene
        .fake
        .on(When::get("/referrers/").first(20), Then::status(500));
    let answer = scene.send(Request::get(&target)).await?;
    assert_eq!(answer.status(), 503, "an empty list would mean: unsigned");
    scene.fake.heal();
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let rotten = Canned::status(200)
        .header("Content-Type", "application/vnd.oci.image.index.v1+json")
        .body("<html>not an index</html>");
    scene
        .fake
        .on(When::get("/referrers/").first(1), Then::answer(rotten));
    let answer = scene.send(Request::get(&target)).await?;
    assert_eq!(answer.status(), 503, "nonsense instead of an index");
    scene.fake.set_referrers("app", &subject, index);
    let answer = scene.send(Request::get(&target)).await?;
    assert_whole(&answer, index.as_bytes());
    let media_type = answer.header("content-type");
    assert_eq!(media_type, Some("application/vnd.oci.image.index.v1+json"));
    Ok(())
}

#[tokio::test]
async fn referrers_of_an_upstream_without_that_api_come_from_the_tag_or_are_none() -> Result<()> {
    let scene = Scene::start().await?;
    let index_type = "application/vnd.oci.image.index.v1+json";
    let subject = sha256(b"an image");
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2,"artifactType":"a/b"}]}"#;
    let digest = scene.fake.add_manifest("tagged", index_type, index);
    let tag = format!("sha256-{}", subject.hex());
    scene.fake.set_tag("tagged", &tag, &digest);
    scene.fake.add_blob("bare", "something");
    for (repository, count) in [("tagged", 1), ("bare", 0)] {
        let target = format!("/v2/fake/{repository}/referrers/{subject}");
        let answer = scene.send(Request::get(&target)).await?;
        assert_eq!(
            (answer.status(), answer.header("content-type")),
            (200, Some(index_type))
        );
        let manifests = answer.json()?["manifests"].as_array().map(Vec::len);
        assert_eq!(manifests, Some(count), "{repository}");
    }
    Ok(())
}

#[tokio::test]
async fn without_any_upstream_configured_the_node_answers_for_itself() -> Result<()> {
    let node = Node::builder().start().await?;
    assert_eq!(node.send(Request::get("/v2/")).await?.status(), 200);
    let bad = Request::get("/v2/docker.io/library/app/blobs/sha256:totallywrong");
    assert!([400, 404].contains(&node.send(bad).await?.status()));
    Ok(())
}

#[tokio::test]
async fn a_hiccup_is_bridged() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1_000)]);
    for status in [500, 503] {
        scene
            .fake
            .on(When::any("/v2/").first(1), Then::status(status));
    }
    scene.pull("app", "latest", &image).await
}
