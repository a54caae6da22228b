//! Signed schema 1 manifests: their digest leaves the signatures out, so nobody but the client can verify
//! them. They are passed on as they are, never kept, and nobody is blamed for them.

use anyhow::{Result, ensure};
use bytes::Bytes;
use millrace_cluster_tests::fake::{self, Canned, Fake, Then, When, assert_whole, sha256};
use millrace_cluster_tests::fleet::{self, Fleet};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_protocol::oci::Digest;

const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// A manifest with its signature, and the digest of what was signed.
struct Signed {
    digest: Digest,
    bytes: Bytes,
}

impl Signed {
    /// Adds one to a fake, under the tag `old` and its digest.
    fn of(fake: &Fake) -> Self {
        let payload = r#"{"schemaVersion":1,"name":"team/app","tag":"old","fsLayers":[]"#;
        let digest = sha256(format!("{payload}}}").as_bytes());
        let bytes = Bytes::from(format!(
            r#"{payload},"signatures":[{{"protected":"e30","signature":"AA"}}]}}"#
        ));
        let signed = Self { digest, bytes };
        for name in signed.names() {
            let answer = Canned::status(200)
                .header("Content-Type", SCHEMA1)
                .header("Docker-Content-Digest", &digest.to_string())
                .body(signed.bytes.clone());
            let when = When::any(&format!("/manifests/{name}"));
            fake.on(when, Then::answer(answer));
        }
        signed
    }

    /// Returns the names by which it is asked for.
    fn names(&self) -> [String; 2] {
        ["old".to_owned(), self.digest.to_string()]
    }

    fn assert_is(&self, answer: &Answer) {
        assert_whole(answer, &self.bytes);
        assert_eq!(answer.header("content-type"), Some(SCHEMA1));
        let digest = self.digest.to_string();
        let stated = answer.header("docker-content-digest");
        assert_eq!(stated, Some(digest.as_str()));
    }
}

#[tokio::test]
async fn a_signed_manifest_is_passed_on_and_not_kept() -> Result<()> {
    let scene = fake::Scene::start().await?;
    let signed = Signed::of(&scene.fake);
    for name in signed.names() {
        for _ in 0..2 {
            let before = scene.fake.count("GET", "/manifests/");
            let answer = scene.send(scene.manifest("team/app", &name)).await?;
            signed.assert_is(&answer);
            let fetched = scene.fake.count("GET", "/manifests/") - before;
            ensure!(fetched == 1, "{name}: {fetched} fetches");
        }
    }
    let status = scene.node.status().await?;
    ensure!(status["store"]["blobs"] == 0, "{}", status["store"]);
    scene.fake.stop().await;
    for name in signed.names() {
        let answer = scene.send(scene.manifest("team/app", &name)).await?;
        ensure!(answer.status() == 503, "{name}: {}", answer.status());
    }
    Ok(())
}

#[tokio::test]
async fn a_signed_manifest_is_had_through_any_node_and_nobody_is_blamed_for_it() -> Result<()> {
    let scene = fleet::Scene::start(Fleet::of(3)).await?;
    let signed = Signed::of(&scene.fake);
    // Whoever is its home, and the tag's, two of them are not.
    for _ in 0..2 {
        for node in 0..3 {
            for name in signed.names() {
                let path = format!("/v2/fake/team/app/manifests/{name}");
                let answer = scene.fleet.node(node).send(Request::get(&path)).await?;
                signed.assert_is(&answer);
            }
        }
    }
    for node in 0..3 {
        let status = scene.fleet.node(node).status().await?;
        let distrusted = &status["pull"]["distrusted"];
        ensure!(*distrusted == serde_json::json!([]), "{node}: {distrusted}");
        ensure!(status["store"]["blobs"] == 0, "{}", status["store"]);
    }
    Ok(())
}
