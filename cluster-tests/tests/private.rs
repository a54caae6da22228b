//! An upstream that wants a password: where it comes from, and where it never goes.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use millrace_cluster_tests::corp::{REPOSITORY, UPSTREAM, node_before, repository};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::upstream::Upstream;
use serde_json::json;
use tempfile::TempDir;

/// A private registry that holds `image`, and the image.
async fn private() -> Result<(Upstream, Image)> {
    let upstream = Upstream::start_private("ann", "a secret: §").await?;
    let image = Image::runnable("private")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    Ok((upstream, image))
}

#[tokio::test]
async fn a_private_upstream_is_pulled_with_a_configured_password() -> Result<()> {
    let (upstream, image) = private().await?;
    let node = node_before(&upstream)
        .set("upstreams/corp/username", "ann")
        .set("upstreams/corp/password", "a secret: §")
        .start()
        .await?;
    repository(&node).pull(&image, "1").await?;
    ensure!(
        !node.log().contains("a secret"),
        "the password is in the log"
    );
    Ok(())
}

#[tokio::test]
async fn a_private_upstream_is_pulled_with_a_password_file() -> Result<()> {
    let (upstream, image) = private().await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("password");
    std::fs::write(&file, "a secret: §\n")?;
    let node = node_before(&upstream)
        .set("upstreams/corp/username", "ann")
        .set("upstreams/corp/password_file", file.display().to_string())
        .start()
        .await?;
    repository(&node).pull(&image, "1").await
}

#[tokio::test]
async fn a_private_upstream_is_pulled_with_a_credential_helper() -> Result<()> {
    let (upstream, image) = private().await?;
    let folder = TempDir::new()?;
    let helper = folder.path().join("docker-credential-test");
    // The protocol of docker's credential helpers: `get`, the host on standard input, JSON back.
    let script = "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread host\n\
                  printf '{\"ServerURL\":\"%s\",\"Username\":\"ann\",\"Secret\":\"a secret: §\"}' \"$host\"\n";
    std::fs::write(&helper, script)?;
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755))?;
    let node = node_before(&upstream)
        .set(
            "upstreams/corp/exec",
            json!({"command": helper.display().to_string()}),
        )
        .start()
        .await?;
    repository(&node).pull(&image, "1").await
}

#[tokio::test]
async fn a_refused_password_is_a_missing_image_to_the_client() -> Result<()> {
    let (upstream, image) = private().await?;
    let node = node_before(&upstream)
        .set("upstreams/corp/username", "ann")
        .set("upstreams/corp/password", "a wrong one")
        .start()
        .await?;
    let manifest = repository(&node).get("manifests/1").await?;
    ensure!(manifest.status() == 404, "{manifest:?}");
    ensure!(
        manifest.header("www-authenticate").is_none(),
        "the upstream's challenge was relayed"
    );
    let blob = repository(&node)
        .get(&format!("blobs/{}", image.platform().config.digest))
        .await?;
    ensure!(blob.status() == 404, "{blob:?}");
    ensure!(
        blob.json()?["errors"][0]["code"] == "BLOB_UNKNOWN",
        "{:?}",
        blob.body
    );
    Ok(())
}

#[tokio::test]
async fn a_clients_password_stays_at_the_node() -> Result<()> {
    let (upstream, _image) = private().await?;
    let node = node_before(&upstream).start().await?;
    // base64 of "ann:a secret: §": right for the upstream, but the client's own.
    let request = Request::get(&format!("/v2/{UPSTREAM}/{REPOSITORY}/manifests/1"))
        .header("Authorization", "Basic YW5uOmEgc2VjcmV0OiDCpw==");
    let answer = node.send(request.clone()).await?;
    ensure!(
        answer.status() == 404,
        "the client's password reached the upstream: {answer:?}"
    );
    Ok(())
}
