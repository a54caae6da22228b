//! Manifests are promises: while the upstream is away, one goes out only with everything under it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::try_join_all;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Canned, Image, Scene, Then, When, assert_whole, noise, sha256};
use millrace_cluster_tests::http::Request;
use serde_json::json;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A node whose tags stay fresh, so that nothing but the promise decides.
async fn scene() -> Result<Scene> {
    let rule = json!([{"match": "*", "policy": "ttl", "ttl": "1h"}]);
    Scene::with(|node| node.set("upstreams/fake/tags", rule)).await
}

/// Stops the upstream and lets the node notice.
async fn take_away(scene: &Scene) -> Result<()> {
    scene.settle().await;
    scene.fake.stop().await;
    let unknown = sha256(b"never seen");
    let answer = scene.send(scene.blob("app", &unknown)).await?;
    assert_eq!(answer.status(), 503);
    Ok(())
}

async fn status(scene: &Scene, reference: impl std::fmt::Display) -> Result<u16> {
    let answer = scene.send(scene.manifest("app", reference)).await?;
    Ok(answer.status())
}

/// Adds an index of two images; returns it with them.
fn index(scene: &Scene) -> (Bytes, Image, Image) {
    let one = scene.fake.add_image("app", "one", &[noise(1, 1_000)]);
    let two = scene.fake.add_image("app", "two", &[noise(2, 1_000)]);
    let entry = |image: &Image, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest.to_string(), "size": image.manifest_bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&one, "amd64"), entry(&two, "arm64")]});
    let bytes = Bytes::from(index.to_string());
    let digest = scene.fake.add_manifest("app", INDEX, bytes.clone());
    scene.fake.set_tag("app", "multi", &digest);
    (bytes, one, two)
}

#[tokio::test]
async fn a_complete_image_is_handed_out_while_the_upstream_is_away() -> Result<()> {
    let scene = scene().await?;
    let image = scene
        .fake
        .add_image("app", "latest", &[noise(1, 1_000), noise(2, 1_000)]);
    scene.pull("app", "latest", &image).await?;
    take_away(&scene).await?;
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn an_image_without_one_of_its_blobs_is_not_promised_until_the_upstream_is_back() -> Result<()>
{
    let scene = scene().await?;
    let image = scene
        .fake
        .add_image("app", "latest", &[noise(1, 1_000), noise(2, 1_000)]);
    assert_eq!(status(&scene, "latest").await?, 200);
    for digest in [&image.config, &image.layers[0]] {
        assert_eq!(scene.send(scene.blob("app", digest)).await?.status(), 200);
    }
    take_away(&scene).await?;
    assert_eq!(status(&scene, "latest").await?, 503, "a fresh tag");
    assert_eq!(status(&scene, image.manifest).await?, 503, "a digest");
    let pulls = scene.fake.count("GET", "/manifests/");
    scene.fake.resume().await?;
    eventually("the manifest is promised again", async || {
        // Nothing else is asked for, so nothing else can tell the node that the upstream is back.
        status(&scene, image.manifest).await.ok() == Some(200)
    })
    .await;
    assert_eq!(scene.fake.count("GET", "/manifests/"), pulls, "it counts");
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn an_upstream_that_failed_once_is_asked_again_once_for_a_crowd() -> Result<()> {
    let scene = scene().await?;
    let image = scene
        .fake
        .add_image("app", "latest", &[noise(1, 1_000), noise(2, 1_000)]);
    assert_eq!(status(&scene, "latest").await?, 200);
    take_away(&scene).await?;
    scene.fake.resume().await?;
    // Long enough that all of them have asked before the answer.
    let slow = Then::healthy().delay(Duration::from_millis(700));
    scene.fake.on(When::any("/manifests/"), slow);
    let heads = scene.fake.count("HEAD", "/manifests/");
    let crowd = (0..16).map(|_| status(&scene, image.manifest));
    assert_eq!(try_join_all(crowd).await?, [200; 16]);
    assert_eq!(scene.fake.count("HEAD", "/manifests/"), heads + 1);
    Ok(())
}

#[tokio::test]
async fn what_the_upstream_has_lost_meanwhile_is_not_promised() -> Result<()> {
    let scene = scene().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1_000)]);
    assert_eq!(status(&scene, "latest").await?, 200);
    take_away(&scene).await?;
    scene.fake.resume().await?;
    scene.fake.on(When::any("/manifests/"), Then::status(404));
    assert_eq!(status(&scene, image.manifest).await?, 404);
    Ok(())
}

/// Lets the upstream refuse all that `when` matches, and the node notice by `request`.
async fn limit(scene: &Scene, when: When, body: &str, request: Request) -> Result<()> {
    let limit = Canned::status(429)
        .header("Retry-After", "6")
        .body(body.to_owned());
    scene.fake.on(when.first(1), Then::answer(limit));
    let answer = scene.send(request).await?;
    assert_eq!(answer.status(), 503);
    Ok(())
}

#[tokio::test]
async fn while_a_limit_stops_blobs_only_a_complete_image_is_promised() -> Result<()> {
    let scene = scene().await?;
    let layers = [noise(1, 1_000), noise(2, 1_000)];
    let whole = scene.fake.add_image("app", "whole", &layers);
    scene.pull("app", "whole", &whole).await?;
    let image = scene.fake.add_image("app", "latest", &layers[1..]);
    let more = scene.fake.add_image("app", "more", &[noise(3, 1_000)]);
    assert_eq!(status(&scene, "latest").await?, 200);
    assert_eq!(status(&scene, "more").await?, 200);
    let blob = scene.send(scene.blob("app", &image.config)).await?;
    assert_eq!(blob.status(), 200);
    scene.settle().await;
    let unknown = scene.blob("app", &sha256(b"never seen"));
    limit(&scene, When::any("/v2/"), "Too Many Requests", unknown).await?;
    for reference in ["whole", "latest"] {
        assert_eq!(status(&scene, reference).await?, 200, "{reference}");
    }
    assert_eq!(status(&scene, "more").await?, 503, "a fresh tag");
    assert_eq!(status(&scene, more.manifest).await?, 503, "a digest");
    eventually("the limit ends", async || {
        status(&scene, "more").await.ok() == Some(200)
    })
    .await;
    scene.pull("app", "more", &more).await
}

#[tokio::test]
async fn while_a_limit_stops_pulls_only_blobs_are_counted_on() -> Result<()> {
    let scene = scene().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1_000)]);
    let other = scene.fake.add_image("app", "other", &[noise(2, 1_000)]);
    assert_eq!(status(&scene, "latest").await?, 200);
    let pulls = r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#;
    let manifest = scene.manifest("app", other.manifest);
    limit(&scene, When::get("/manifests/"), pulls, manifest).await?;
    let heads = scene.fake.count("HEAD", "/manifests/");
    scene.pull("app", "latest", &image).await?;
    let asked = scene.fake.count("HEAD", "/manifests/") - heads;
    assert_eq!(asked, 0, "whether it gives blobs");
    Ok(())
}

#[tokio::test]
async fn an_index_is_promised_with_one_complete_image() -> Result<()> {
    let scene = scene().await?;
    let (bytes, one, two) = index(&scene);
    assert_eq!(status(&scene, "multi").await?, 200);
    scene.pull("app", "one", &one).await?;
    // Of the other image only the manifest is here.
    assert_eq!(status(&scene, two.manifest).await?, 200);
    take_away(&scene).await?;
    let answer = scene.send(scene.manifest("app", "multi")).await?;
    assert_whole(&answer, &bytes);
    assert_eq!(status(&scene, one.manifest).await?, 200);
    assert_eq!(status(&scene, two.manifest).await?, 503);
    Ok(())
}

#[tokio::test]
async fn an_index_without_a_complete_image_is_not_promised() -> Result<()> {
    let scene = scene().await?;
    let (_, one, _) = index(&scene);
    assert_eq!(status(&scene, "multi").await?, 200);
    assert_eq!(status(&scene, one.manifest).await?, 200);
    take_away(&scene).await?;
    assert_eq!(status(&scene, "multi").await?, 503);
    Ok(())
}
