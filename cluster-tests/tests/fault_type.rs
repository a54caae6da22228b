//! The type of a manifest is what its registry calls it, and another's word does not change it.

use anyhow::Result;
use bytes::Bytes;
use millrace_cluster_tests::fake::{Canned, Fake, Then, When, assert_whole, sha256};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::node::Node;
use serde_json::json;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a client is told of content that is nothing it could know.
const BYTES: &str = "application/octet-stream";

/// Two registries that have the same index under the same tag, and the index.
async fn twins() -> Result<(Fake, Fake, Bytes)> {
    let (one, two) = (Fake::start().await?, Fake::start().await?);
    let index =
        Bytes::from(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string());
    for fake in [&one, &two] {
        let digest = fake.add_manifest("app", INDEX, index.clone());
        fake.set_tag("app", "latest", &digest);
        // So that the manifest comes with each check of the tag.
        fake.on(When::head("/manifests/"), Then::status(405));
    }
    Ok((one, two, index))
}

async fn node(one: &Fake, two: &Fake) -> Result<Node> {
    let builder = Node::builder().upstream("one", &one.url());
    builder.upstream("two", &two.url()).start().await
}

/// Returns the type in which an upstream's manifest is answered, whose bytes are `index`.
async fn type_of(node: &Node, upstream: &str, reference: &str, index: &Bytes) -> Result<String> {
    let path = format!("/v2/{upstream}/app/manifests/{reference}");
    let answer = node.send(Request::get(&path)).await?;
    assert_whole(&answer, index);
    Ok(answer.header("content-type").unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_type_that_is_not_stated_is_the_one_in_the_manifest() -> Result<()> {
    let (one, two, index) = twins().await?;
    one.on(
        When::get("/manifests/"),
        Then::healthy().without("Content-Type"),
    );
    let node = node(&one, &two).await?;
    for _ in 0..2 {
        assert_eq!(type_of(&node, "one", "latest", &index).await?, INDEX);
    }
    Ok(())
}

#[tokio::test]
async fn another_registrys_word_changes_no_type() -> Result<()> {
    let (one, two, index) = twins().await?;
    let digest = sha256(&index).to_string();
    let liar = Canned::status(200)
        .header("Content-Type", "text/html")
        .body(index.clone());
    two.on(When::get("/manifests/"), Then::answer(liar));
    let mut node = node(&one, &two).await?;
    assert_eq!(type_of(&node, "one", "latest", &index).await?, INDEX);
    type_of(&node, "two", "latest", &index).await?;
    assert_eq!(type_of(&node, "one", &digest, &index).await?, INDEX);
    node.stop().await?;
    node.restart().await?;
    assert_eq!(type_of(&node, "one", &digest, &index).await?, INDEX);
    Ok(())
}

#[tokio::test]
async fn a_type_that_nobody_states_is_the_one_that_the_manifest_is_of() -> Result<()> {
    let fake = Fake::start().await?;
    let config = fake.add_blob("app", "{}");
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2});
    let image = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    let digest = fake.add_manifest("app", "", image.clone());
    let child = json!({"mediaType": IMAGE, "digest": digest, "size": image.len()});
    let index = json!({"schemaVersion": 2, "manifests": [child]}).to_string();
    let strange = json!({"schemaVersion": 2}).to_string();
    let unstated = When::get("/manifests/");
    fake.on(unstated, Then::healthy().without("Content-Type"));
    let mut node = Node::builder().upstream("one", &fake.url()).start().await?;
    let contents = [(image, IMAGE), (index, INDEX), (strange, BYTES)];
    for (content, _) in &contents {
        let digest = fake.add_manifest("app", "", content.clone());
        fake.set_tag("app", &tag_of(content), &digest);
    }
    for _ in 0..2 {
        for (content, expected) in &contents {
            let content = Bytes::from(content.clone());
            let digest = sha256(&content).to_string();
            for reference in [tag_of(&content), digest] {
                let found = type_of(&node, "one", &reference, &content).await?;
                assert_eq!(found, *expected, "{reference}");
            }
        }
        node.restart().await?;
    }
    Ok(())
}

/// Returns a tag for a manifest.
fn tag_of(content: impl AsRef<[u8]>) -> String {
    format!("v{}", content.as_ref().len())
}
