//! What a node answers in front of a real registry: content, names, lists, status.

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::client::Skopeo;
use millrace_cluster_tests::corp::{REPOSITORY, UPSTREAM, node_before, repository};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_cluster_tests::image::{INDEX, Image, MANIFEST, referrers_tag};
use millrace_cluster_tests::upstream::Upstream;
use millrace_protocol::oci::Digest;
use serde_json::{Value, json};

#[tokio::test]
async fn two_platforms_and_forty_layers_are_kept_byte_by_byte() -> Result<()> {
    let upstream = Upstream::start().await?;
    let (platforms, layers) = (Image::of_two_platforms("bytes")?, Image::of_layers(40)?);
    upstream.push(&platforms, REPOSITORY, "platforms").await?;
    upstream.push(&layers, REPOSITORY, "layers").await?;
    let node = node_before(&upstream).start().await?;
    for _ in ["cold", "warm"] {
        repository(&node).pull(&platforms, "platforms").await?;
        repository(&node).pull(&layers, "layers").await?;
    }
    let warm = repository(&node)
        .get(&format!("blobs/{}", layers.platform().config.digest))
        .await?;
    ensure!(
        warm.header("x-millrace-source") == Some("local"),
        "{:?}",
        warm.head
    );
    Ok(())
}

#[tokio::test]
async fn the_catalog_lists_what_was_pulled() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("catalog")?;
    for repository in ["a/one", "a/two", "b"] {
        upstream.push(&image, repository, "1").await?;
    }
    let node = node_before(&upstream).start().await?;
    for repository in ["b", "a/two", "a/one"] {
        let answer = node
            .send(Request::get(&format!("/v2/corp/{repository}/manifests/1")))
            .await?;
        ensure!(answer.status() == 200, "{answer:?}");
    }
    let all = node.send(Request::get("/v2/_catalog")).await?.json()?;
    ensure!(
        all["repositories"] == json!(["corp/a/one", "corp/a/two", "corp/b"]),
        "{all}"
    );
    let page = node.send(Request::get("/v2/_catalog?n=2")).await?;
    ensure!(
        page.json()?["repositories"] == json!(["corp/a/one", "corp/a/two"]),
        "{page:?}"
    );
    let next = next_page(&page).context("a first page names the next one")?;
    let rest = node.send(Request::get(&next)).await?;
    ensure!(
        rest.json()?["repositories"] == json!(["corp/b"]),
        "{rest:?}"
    );
    ensure!(next_page(&rest).is_none(), "{:?}", rest.head);
    Ok(())
}

/// Returns the target of `Link: <…>; rel="next"`.
fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| target.to_owned())
}

#[tokio::test]
async fn tags_are_listed_page_by_page_under_the_clients_name() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("tags")?;
    let tags = ["1.0", "1.1", "2.0", "latest", "old"];
    for tag in tags {
        upstream.push(&image, REPOSITORY, tag).await?;
    }
    let node = node_before(&upstream).start().await?;
    let all = repository(&node).get("tags/list").await?.json()?;
    ensure!(
        all == json!({"name": "corp/team/app", "tags": tags}),
        "{all}"
    );

    let after = repository(&node).get("tags/list?last=1.1").await?.json()?;
    ensure!(after["tags"] == json!(["2.0", "latest", "old"]), "{after}");
    let none = repository(&node).get("tags/list?n=0").await?;
    ensure!(
        none.json()?["tags"] == json!([]) && next_page(&none).is_none(),
        "{none:?}"
    );

    let mut listed = Vec::new();
    let mut target = format!("/v2/{REPOSITORY}/tags/list?n=2&ns={UPSTREAM}");
    loop {
        let page = node.send(Request::get(&target)).await?;
        let mut names: Vec<String> = serde_json::from_value(page.json()?["tags"].take())?;
        listed.append(&mut names);
        let Some(next) = next_page(&page) else { break };
        ensure!(
            next.contains("ns=corp"),
            "the next page lost its upstream: {next}"
        );
        target = next;
    }
    ensure!(listed == tags, "{listed:?}");

    // skopeo follows the pages by itself.
    let skopeo = Skopeo::through("127.0.0.1:1")?;
    let tags_by_skopeo = skopeo
        .tags(&format!("{}/corp/team/app", node.address()))
        .await?;
    ensure!(tags_by_skopeo == tags, "{tags_by_skopeo:?}");
    Ok(())
}

#[tokio::test]
async fn referrers_come_from_the_tag_where_the_upstream_has_no_api() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("subject")?;
    let artifact = Image::artifact("application/example.sbom", image.root(), b"what is inside")?;
    let referrers = Image::referrers_index(&artifact, "application/example.sbom")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    upstream.push(&artifact, REPOSITORY, "sbom").await?;
    upstream
        .put_root(&referrers, REPOSITORY, &referrers_tag(&image.root().digest))
        .await?;
    let node = node_before(&upstream).start().await?;

    let found = repository(&node)
        .get(&format!("referrers/{}", image.root().digest))
        .await?;
    ensure!(
        found.status() == 200 && found.header("content-type") == Some(INDEX),
        "{found:?}"
    );
    ensure!(
        digests(&found.json()?) == [artifact.root().digest.to_string()],
        "{:?}",
        found.body
    );
    repository(&node)
        .pull(&artifact, &artifact.root().digest.to_string())
        .await?;

    let other = repository(&node)
        .get(&format!(
            "referrers/{}?artifactType=application/other",
            image.root().digest
        ))
        .await?;
    if other.header("oci-filters-applied").is_some() {
        ensure!(digests(&other.json()?).is_empty(), "{other:?}");
    }
    let none = repository(&node)
        .get(&format!("referrers/{}", artifact.root().digest))
        .await?;
    ensure!(
        none.status() == 200 && digests(&none.json()?).is_empty(),
        "{none:?}"
    );
    Ok(())
}

fn digests(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| entry["digest"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn referrers_fail_closed_while_the_upstream_is_away() -> Result<()> {
    let mut upstream = Upstream::start().await?;
    let image = Image::runnable("subject")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let node = node_before(&upstream).start().await?;
    upstream.stop();
    let answer = repository(&node)
        .get(&format!("referrers/{}", image.root().digest))
        .await?;
    ensure!(
        answer.status() >= 500,
        "an empty list would mean unsigned: {answer:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_moved_tag_is_seen_when_it_is_asked_for_again() -> Result<()> {
    let upstream = Upstream::start().await?;
    let (old, new) = (Image::runnable("old")?, Image::runnable("new")?);
    let always = json!([{"match": "*", "policy": "always"}]);
    let node = node_before(&upstream)
        .set("upstreams/corp/tags", always)
        .start()
        .await?;
    upstream.push(&old, REPOSITORY, "latest").await?;
    repository(&node).pull(&old, "latest").await?;
    upstream.push(&new, REPOSITORY, "latest").await?;
    repository(&node).pull(&new, "latest").await?;
    // What the tag meant before is still served by its digest.
    repository(&node)
        .pull(&old, &old.root().digest.to_string())
        .await
}

#[tokio::test]
async fn a_fresh_tag_costs_the_upstream_nothing() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("fresh")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let node = node_before(&upstream).start().await?;
    repository(&node).pull(&image, "1").await?;
    let before = upstream.accesses().await?.len();
    for _ in 0..5 {
        let head = Request::head(&format!("/v2/{UPSTREAM}/{REPOSITORY}/manifests/1"))
            .header("Accept", MANIFEST);
        let head = node.send(head).await?;
        ensure!(head.status() == 200, "{head:?}");
        ensure!(
            head.header("docker-content-digest") == Some(&image.root().digest.to_string()),
            "{head:?}"
        );
        repository(&node).pull(&image, "1").await?;
    }
    let after = upstream.accesses().await?;
    // The log itself is read with one marked request.
    ensure!(after.len() == before + 1, "{:#?}", &after[before..]);
    Ok(())
}

#[tokio::test]
async fn a_pull_is_counted_and_the_status_names_the_upstream() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("status")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let node = node_before(&upstream).start().await?;
    repository(&node).pull(&image, "1").await?;
    let status = node.status().await?;
    ensure!(status.to_string().contains(UPSTREAM), "{status}");
    let metrics = Request::get("/metrics").send(node.debug_address()).await?;
    ensure!(
        String::from_utf8_lossy(&metrics.body).contains("millrace_"),
        "{metrics:?}"
    );
    let health = Request::get("/healthz").send(node.debug_address()).await?;
    ensure!(health.status() == 200, "{health:?}");
    Ok(())
}

#[tokio::test]
async fn an_unknown_upstream_is_refused_at_once() -> Result<()> {
    let upstream = Upstream::start().await?;
    let node = node_before(&upstream).start().await?;
    for target in [
        "/v2/registry.elsewhere/team/app/manifests/1",
        "/v2/team/app/manifests/1?ns=registry.elsewhere",
    ] {
        let answer = node.send(Request::get(target)).await?;
        ensure!(answer.status() == 404, "{target}: {answer:?}");
        ensure!(
            answer.json()?["errors"][0]["code"] == "NAME_UNKNOWN",
            "{target}: {:?}",
            answer.body
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_blob_is_unknown() -> Result<()> {
    let upstream = Upstream::start().await?;
    upstream
        .push(&Image::runnable("x")?, REPOSITORY, "1")
        .await?;
    let node = node_before(&upstream).start().await?;
    let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse()?;
    let answer = repository(&node).get(&format!("blobs/{digest}")).await?;
    ensure!(answer.status() == 404, "{answer:?}");
    ensure!(
        answer.json()?["errors"][0]["code"] == "BLOB_UNKNOWN",
        "{:?}",
        answer.body
    );
    Ok(())
}
