//! Upstreams that send something else than was asked for: no wrong byte is kept, none completes.

use anyhow::Result;
use bytes::Bytes;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{
    Scene, Then, When, assert_unfinished, assert_whole, noise, sha256,
};
use millrace_cluster_tests::http::{Answer, End};
use millrace_protocol::oci::Digest;

const MIB: usize = 1024 * 1024;
const JSON: &str = "application/vnd.oci.image.manifest.v1+json";

fn blob() -> Bytes {
    noise(1, 2 * MIB)
}

/// Lets the upstream lie about a blob, and demands that the lie never completes, that nothing of
/// it is kept, and that the truth is fetched afterwards.
async fn lie_never_completes(size: usize, lie: Then) -> Result<Answer> {
    let scene = Scene::start().await?;
    let content = noise(1, size);
    let digest = scene.fake.add_blob("app", content.clone());
    scene.fake.on(When::get("/blobs/"), lie);
    let wrong = scene.send(scene.blob("app", &digest)).await?;
    assert_unfinished(&wrong);
    truth_follows(&scene, &digest, &content).await?;
    Ok(wrong)
}

/// Heals the upstream and waits until the node fetches the blob again and has it right.
async fn truth_follows(scene: &Scene, digest: &Digest, content: &[u8]) -> Result<()> {
    scene.fake.heal();
    let asked = scene.fake.count("GET", "/blobs/");
    eventually("the truth is fetched", async || {
        let answer = scene.send(scene.blob("app", digest)).await;
        answer.is_ok_and(|answer| {
            let good = answer.status() == 200 && answer.end == End::Complete;
            assert!(!good || answer.body == *content, "wrong bytes were kept");
            good
        })
    })
    .await;
    assert!(
        scene.fake.count("GET", "/blobs/") > asked,
        "served from a store that must be empty"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_first_byte_never_completes() -> Result<()> {
    lie_never_completes(2 * MIB, Then::healthy().flip(0)).await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_last_byte_never_completes() -> Result<()> {
    let wrong = lie_never_completes(2 * MIB, Then::healthy().flip(2 * MIB - 1)).await?;
    // The last bytes are held back until the digest is right, so the wrong one never left.
    assert!(noise(1, 2 * MIB).starts_with(&wrong.body) || wrong.status() >= 400);
    Ok(())
}

#[tokio::test]
async fn a_small_wrong_blob_is_an_error_status_and_no_body() -> Result<()> {
    let wrong = lie_never_completes(1_000, Then::healthy().flip(10)).await?;
    assert!(wrong.status() >= 400, "{}", wrong.status());
    Ok(())
}

#[tokio::test]
async fn a_longer_body_never_completes() -> Result<()> {
    let longer = [blob(), noise(2, 100)].concat();
    lie_never_completes(2 * MIB, Then::healthy().replace(longer)).await?;
    Ok(())
}

#[tokio::test]
async fn a_shorter_body_never_completes() -> Result<()> {
    let shorter = blob().slice(..2 * MIB - 100);
    lie_never_completes(2 * MIB, Then::healthy().replace(shorter)).await?;
    Ok(())
}

#[tokio::test]
async fn an_empty_body_never_completes() -> Result<()> {
    lie_never_completes(2 * MIB, Then::healthy().replace("")).await?;
    Ok(())
}

#[tokio::test]
async fn less_than_the_stated_length_never_completes() -> Result<()> {
    let length = (2 * MIB + 100).to_string();
    lie_never_completes(2 * MIB, Then::healthy().header("Content-Length", &length)).await?;
    Ok(())
}

#[tokio::test]
async fn more_than_the_stated_length_never_completes() -> Result<()> {
    let length = (2 * MIB - 100).to_string();
    lie_never_completes(2 * MIB, Then::healthy().header("Content-Length", &length)).await?;
    Ok(())
}

#[tokio::test]
async fn a_cut_body_without_length_never_completes() -> Result<()> {
    let lie = Then::healthy().without("Content-Length").cut(1_500_000);
    lie_never_completes(2 * MIB, lie).await?;
    Ok(())
}

#[tokio::test]
async fn a_whole_body_without_length_is_accepted_and_kept() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = scene.fake.add_blob("app", blob());
    scene.fake.on(
        When::get("/blobs/"),
        Then::healthy().without("Content-Length"),
    );
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_whole(&answer, &blob());
    let length = blob().len().to_string();
    eventually("it is kept", async || {
        let again = scene.send(scene.blob("app", &digest)).await;
        again.is_ok_and(|again| {
            assert_whole(&again, &blob());
            assert_eq!(again.header("content-length"), Some(length.as_str()));
            again.header("x-millrace-source") == Some("local")
        })
    })
    .await;
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn compression_on_the_wire_is_neither_asked_for_nor_kept() -> Result<()> {
    let scene = Scene::start().await?;
    let content = Bytes::from(vec![b'a'; 100_000]);
    let digest = scene.fake.add_blob("app", content.clone());
    scene.fake.on(When::get("/blobs/"), Then::healthy().gzip());
    let request = || {
        scene
            .blob("app", &digest)
            .header("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
    };
    let wrong = scene.send(request()).await?;
    assert!(wrong.status() >= 400, "{}", wrong.status());
    truth_follows(&scene, &digest, &content).await?;
    let right = scene.send(request()).await?;
    assert_eq!(right.header("content-encoding"), None);
    assert_whole(&right, &content);
    for record in scene.fake.records() {
        assert_eq!(
            record.header("accept-encoding"),
            Some("identity"),
            "{}",
            record.target
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_compressed_manifest_is_not_kept() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 100)]);
    scene
        .fake
        .on(When::get("/manifests/"), Then::healthy().gzip());
    let wrong = scene.send(scene.manifest("app", "latest")).await?;
    assert!(wrong.status() >= 500, "{}", wrong.status());
    scene.fake.heal();
    let right = scene.send(scene.manifest("app", "latest")).await?;
    assert_whole(&right, &image.manifest_bytes);
    Ok(())
}

#[tokio::test]
async fn a_wrong_manifest_is_an_error_and_not_kept() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 100)]);
    scene
        .fake
        .on(When::get("/manifests/"), Then::healthy().flip(5));
    for reference in [image.manifest.to_string(), "latest".to_owned()] {
        let wrong = scene.send(scene.manifest("app", reference)).await?;
        assert!(wrong.status() >= 500, "{}", wrong.status());
    }
    scene.fake.heal();
    for reference in [image.manifest.to_string(), "latest".to_owned()] {
        let right = scene.send(scene.manifest("app", reference)).await?;
        assert_whole(&right, &image.manifest_bytes);
    }
    Ok(())
}

#[tokio::test]
async fn a_tag_answer_that_lies_about_its_digest_is_not_believed() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 100)]);
    scene.fake.on(When::head("/manifests/"), Then::status(405));
    let lie = sha256(b"something else").to_string();
    let lying = Then::healthy().header("Docker-Content-Digest", &lie);
    scene.fake.on(When::get("/manifests/latest"), lying);
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    if answer.status() == 200 {
        let digest = image.manifest.to_string();
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(digest.as_str())
        );
        assert_whole(&answer, &image.manifest_bytes);
    } else {
        assert!(answer.status() >= 500, "{}", answer.status());
    }
    Ok(())
}

#[tokio::test]
async fn manifests_and_types_are_kept_to_the_byte() -> Result<()> {
    let scene = Scene::start().await?;
    let odd = "{ \"schemaVersion\" : 2,\r\n\t\"z\":1.0e0, \"a\":\"\\u00e9é\" ,\"layers\":[] }\n\n";
    let digest = scene.fake.add_manifest("app", JSON, odd);
    scene.fake.set_tag("app", "odd", &digest);
    for _ in 0..2 {
        let answer = scene.send(scene.manifest("app", "odd")).await?;
        assert_whole(&answer, odd.as_bytes());
        assert_eq!(answer.header("content-type"), Some(JSON));
    }
    Ok(())
}

#[tokio::test]
async fn answers_without_a_digest_header_are_enough() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 100_000)]);
    let bare = Then::healthy().without("Docker-Content-Digest");
    scene.fake.on(When::any("/v2/"), bare);
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn a_blob_by_sha512_is_verified_as_such() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 100_000);
    let digest = Digest::of(millrace_protocol::oci::Algorithm::Sha512, &content);
    scene.fake.add_blob_as("app", &digest, content.clone());
    let false_one = Digest::of(millrace_protocol::oci::Algorithm::Sha512, b"other");
    scene.fake.add_blob_as("app", &false_one, content.clone());
    assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
    assert_unfinished(&scene.send(scene.blob("app", &false_one)).await?);
    Ok(())
}
