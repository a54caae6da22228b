//! Nodes that do not have the same upstreams: who lacks one is passed over, and nobody waits for it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::fake::{Fake, Image, assert_whole, noise};
use millrace_cluster_tests::fleet::Fleet;
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::load::crowd::pull;
use millrace_protocol::oci::{RepositoryName, Tag};
use millrace_protocol::placement::Key;

/// The node that has the upstream.
const HAS_IT: usize = 3;

/// How long all of it may take: who lacks an upstream says so at once.
const PROMPT: Duration = Duration::from_secs(2);

const REPOSITORY: &str = "team/app";

/// Whether home and owner of a key are others than the node that has the upstream.
fn is_elsewhere(fleet: &Fleet, key: Key) -> bool {
    let placement = fleet.placement(&fleet.running());
    let home = placement.walk(key).next();
    let owner = placement.owners(fleet.zone(HAS_IT), key).next();
    let has_it = fleet.id(HAS_IT);
    home.is_some_and(|home| fleet.zone(fleet.index(home)) != fleet.zone(HAS_IT))
        && owner.is_some_and(|owner| owner != has_it)
}

/// Adds an image of one layer; home and owner of its tag, manifest and layer are others than the
/// node that has the upstream.
fn add_image(fleet: &Fleet, fake: &Fake) -> Result<(String, Image, Bytes)> {
    let repository: RepositoryName = REPOSITORY.parse()?;
    let is_tag = |tag: &Tag| is_elsewhere(fleet, Key::of_tag("fake", &repository, tag));
    let mut tags = (0..1000).filter_map(|number| format!("v{number}").parse().ok());
    let tag = tags.find(is_tag).context("no tag lies elsewhere")?;
    let images = (0..1000).map(|seed| {
        let layer = noise(seed, 100_000);
        let image = fake.add_image(REPOSITORY, tag.as_str(), std::slice::from_ref(&layer));
        (image, layer)
    });
    let mut images = images.filter(|(image, _)| {
        let digests = [&image.manifest, &image.layers[0]];
        let mut keys = digests.into_iter().map(Key::of_digest);
        keys.all(|key| is_elsewhere(fleet, key))
    });
    let (image, layer) = images.next().context("no image lies elsewhere")?;
    Ok((tag.to_string(), image, layer))
}

#[tokio::test]
async fn who_does_not_have_an_upstream_is_passed_over_by_the_one_who_has() -> Result<()> {
    let fake = Fake::start().await?;
    let other = Fake::start().await?;
    let urls = [fake.url(), other.url()];
    let fleet = Fleet::of(4)
        .zones(&["south", "south", "north", "north"])
        .each(move |index, node| match index {
            HAS_IT => node.upstream("fake", &urls[0]),
            _ => node.upstream("other", &urls[1]),
        })
        .start()
        .await?;
    let (tag, image, layer) = add_image(&fleet, &fake)?;
    let node = fleet.node(HAS_IT);
    let start = Instant::now();
    let root = format!("/v2/fake/{REPOSITORY}");
    // By digest first: nothing of it is known from the tag then.
    for reference in [&image.manifest.to_string(), &tag] {
        let request = Request::get(&format!("{root}/manifests/{reference}"));
        assert_whole(&node.send(request).await?, &image.manifest_bytes);
    }
    let path = format!("{root}/blobs/{}", image.layers[0]);
    pull(node.address(), &path, &layer).await?;
    let took = start.elapsed();
    ensure!(took < PROMPT, "{took:?}");
    for path in ["/blobs/", "/manifests/"] {
        assert_eq!(fake.count("GET", path), 1, "{path}");
    }
    assert_eq!(other.records().len(), 0);
    Ok(())
}
