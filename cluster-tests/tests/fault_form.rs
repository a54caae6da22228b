//! A digest is one thing as a blob and another as a manifest: that the upstream does not have it in
//! one form says nothing of the other (contract 11.2).

use anyhow::Result;
use millrace_cluster_tests::fake::{Fake, Guard, Image, Scene, assert_whole, noise};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::node::NodeBuilder;
use millrace_protocol::oci::Digest;

const LOGIN: (&str, &str) = ("mirror", "hunter2");

fn image(fake: &Fake) -> Image {
    fake.add_image("app", "latest", &[noise(1, 1_000)])
}

/// Returns what is answered to `HEAD` and `GET` of a digest in one form, `blobs` or `manifests`.
async fn statuses(scene: &Scene, form: &str, digest: &Digest) -> Result<[u16; 2]> {
    let path = format!("/v2/fake/app/{form}/{digest}");
    let head = scene.send(Request::head(&path)).await?;
    let get = scene.send(Request::get(&path)).await?;
    Ok([head.status(), get.status()])
}

#[tokio::test]
async fn a_manifest_is_had_after_it_was_refused_as_a_blob() -> Result<()> {
    let scene = Scene::start().await?;
    let image = image(&scene.fake);
    let as_blob = async || statuses(&scene, "blobs", &image.manifest).await;
    assert_eq!(as_blob().await?, [404, 404]);
    let asked = scene.fake.records().len();
    assert_eq!(as_blob().await?, [404, 404]);
    assert_eq!(scene.fake.records().len(), asked, "asked again at once");
    assert_eq!(
        statuses(&scene, "manifests", &image.manifest).await?,
        [200, 200]
    );
    Ok(())
}

#[tokio::test]
async fn a_blob_is_had_after_it_was_refused_as_a_manifest() -> Result<()> {
    let scene = Scene::start().await?;
    let image = image(&scene.fake);
    let layer = &image.layers[0];
    let as_manifest = async || statuses(&scene, "manifests", layer).await;
    assert_eq!(as_manifest().await?, [404, 404]);
    let asked = scene.fake.records().len();
    assert_eq!(as_manifest().await?, [404, 404]);
    assert_eq!(scene.fake.records().len(), asked, "asked again at once");
    assert_eq!(statuses(&scene, "blobs", layer).await?, [200, 200]);
    Ok(())
}

/// A node that has an image of a private upstream, which it asks each time, and whose last word counts
/// while it is away.
async fn private(settings: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Result<(Scene, Image)> {
    let fake = Fake::start().await?;
    fake.protect(Guard::Basic(LOGIN.0.to_owned(), LOGIN.1.to_owned()));
    let image = image(&fake);
    let scene = Scene::of(fake, |node| {
        settings(node)
            .set("upstreams/fake/username", LOGIN.0)
            .set("upstreams/fake/password", LOGIN.1)
            .set("cache/access_ttl", "0s")
    })
    .await?;
    scene.pull("app", "latest", &image).await?;
    scene.settle().await;
    Ok((scene, image))
}

#[tokio::test]
async fn what_is_private_stays_linked_after_a_refusal_in_the_other_form() -> Result<()> {
    let (scene, image) = private(|node| node).await?;
    let layer = &image.layers[0];
    for (content, wrong) in [(&image.manifest, "blobs"), (layer, "manifests")] {
        assert_eq!(statuses(&scene, wrong, content).await?, [404, 404]);
    }
    scene.fake.stop().await;
    let manifest = scene.send(scene.manifest("app", image.manifest)).await?;
    assert_whole(&manifest, &image.manifest_bytes);
    assert_eq!(statuses(&scene, "blobs", layer).await?, [200, 200]);
    Ok(())
}

#[tokio::test]
async fn what_is_private_is_withdrawn_by_a_refusal_in_its_own_form() -> Result<()> {
    let (scene, image) = private(|node| node.set("cache/negative_ttl", "0s")).await?;
    let layer = &image.layers[0];
    scene.fake.remove_blob("app", layer);
    assert_eq!(statuses(&scene, "blobs", layer).await?, [404, 404]);
    scene.fake.stop().await;
    assert_eq!(statuses(&scene, "blobs", layer).await?, [503, 503]);
    Ok(())
}
