//! Clients that the distribution lacks, replayed request by request from CLIENT-CONTRACT.

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::condition::{eventually, eventually_some};
use millrace_cluster_tests::http::{End, Request};
use millrace_cluster_tests::image::{Image, MANIFEST};
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;
use millrace_protocol::oci::{Algorithm, Digest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What crane and kaniko (go-containerregistry) send: one list that starts with schema 1.
const CRANE_ACCEPT: &str = "application/vnd.docker.distribution.manifest.v1+json,\
    application/vnd.docker.distribution.manifest.v1+prettyjws,\
    application/vnd.docker.distribution.manifest.v2+json,\
    application/vnd.oci.image.manifest.v1+json,\
    application/vnd.docker.distribution.manifest.list.v2+json,\
    application/vnd.oci.image.index.v1+json";

/// A first chunk of containerd's parallel fetch.
const CHUNK_BYTES: usize = 1024 * 1024;

async fn node_with(image: &Image) -> Result<(Upstream, Node)> {
    let upstream = Upstream::start().await?;
    upstream.push(image, "library/app", "1").await?;
    let node = Node::builder()
        .upstream("docker.io", &upstream.url())
        .start()
        .await?;
    Ok((upstream, node))
}

/// Pulls `image` as go-containerregistry does, with `prefix` before the repository.
async fn pull_as_crane(node: &Node, image: &Image, prefix: &str) -> Result<()> {
    let ping = node
        .send(Request::get("/v2/").header("User-Agent", "crane go-containerregistry"))
        .await?;
    ensure!(ping.status() == 200, "{ping:?}");
    let manifest = Request::get(&format!("/v2/{prefix}/app/manifests/1"))
        .header("Accept", CRANE_ACCEPT)
        .header("Accept-Encoding", "gzip");
    let manifest = node.send(manifest).await?;
    ensure!(manifest.status() == 200, "{manifest:?}");
    ensure!(
        manifest.header("content-type") == Some(MANIFEST),
        "{:?}",
        manifest.head
    );
    ensure!(
        manifest.body == image.read(&image.root().digest)?,
        "another manifest"
    );
    for content in image.contents().iter().skip(1) {
        let blob = Request::get(&format!("/v2/{prefix}/app/blobs/{}", content.digest))
            .header("Accept-Encoding", "gzip");
        let blob = node.send(blob).await?;
        ensure!(
            blob.status() == 200 && blob.end == End::Complete,
            "{:?}",
            blob.head
        );
        // go-containerregistry compares the header with the descriptor.
        ensure!(
            blob.header("content-length") == Some(content.size.to_string().as_str()),
            "{:?}",
            blob.head
        );
        ensure!(
            Digest::of(Algorithm::Sha256, &blob.body) == content.digest,
            "other bytes"
        );
    }
    Ok(())
}

#[tokio::test]
async fn crane_pulls_by_the_name_of_the_upstream() -> Result<()> {
    let image = Image::runnable("crane")?;
    let (_upstream, node) = node_with(&image).await?;
    pull_as_crane(&node, &image, "docker.io/library").await
}

#[tokio::test]
async fn crane_pulls_an_official_image_without_library() -> Result<()> {
    let image = Image::runnable("crane")?;
    let (_upstream, node) = node_with(&image).await?;
    pull_as_crane(&node, &image, "docker.io").await?;
    pull_as_crane(&node, &image, "index.docker.io/library").await
}

#[tokio::test]
async fn kaniko_pulls_by_an_alias_without_dots() -> Result<()> {
    let image = Image::runnable("kaniko")?;
    let (_upstream, node) = node_with(&image).await?;
    pull_as_crane(&node, &image, "dockerhub/library").await
}

#[tokio::test]
async fn containerd_fetches_ranges_in_parallel_and_aborts_them() -> Result<()> {
    let image = Image::of_size(6 * CHUNK_BYTES as u64, 6)?;
    let (upstream, node) = node_with(&image).await?;
    let layer = &image.platform().layers[0].blob;
    let path = format!("/v2/library/app/blobs/{}?ns=docker.io", layer.digest);
    // Even the manifest is asked for with a range; it must come whole, with 200 (B2).
    let manifest =
        Request::get("/v2/library/app/manifests/1?ns=docker.io").header("Range", "bytes=0-");
    let manifest = node.send(manifest).await?;
    ensure!(
        manifest.status() == 200 && manifest.body.len() as u64 == image.root().size,
        "{manifest:?}"
    );

    let mut pieces = Vec::new();
    let total = usize::try_from(layer.size)?;
    let starts: Vec<usize> = (0..total).step_by(CHUNK_BYTES).collect();
    let fetches = starts.iter().map(async |start| {
        let request = Request::get(&path)
            .header("Range", &format!("bytes={start}-"))
            .header("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5");
        let mut exchange = request.open(node.address()).await?;
        ensure!(
            exchange.head().status == 206,
            "from {start}: {:?}",
            exchange.head()
        );
        let expected = format!("bytes {start}-{}/{total}", total - 1);
        ensure!(
            exchange.head().header("content-range") == Some(&expected),
            "{:?}",
            exchange.head()
        );
        let wanted = CHUNK_BYTES.min(total - start);
        let bytes = exchange.read_at_least(wanted).await?;
        // Dropped here with the rest unread: the abort.
        Ok(bytes.slice(..wanted))
    });
    for fetched in futures_util::future::join_all(fetches).await {
        pieces.push(fetched?);
    }
    let digest = Digest::of(Algorithm::Sha256, &pieces.concat());
    ensure!(digest == layer.digest, "the pieces make {digest}");

    // The aborts did not stop the fill, and no client range became a range of its own upstream.
    upstream_sent_once(&upstream, &layer.digest, layer.size).await?;
    // It is complete before it is kept.
    let whole = eventually_some("the blob is kept", async || {
        let whole = node.send(Request::get(&path)).await.ok()?;
        (whole.header("x-millrace-source") == Some("local")).then_some(whole)
    })
    .await;
    ensure!(
        Digest::of(Algorithm::Sha256, &whole.body) == layer.digest,
        "other bytes"
    );
    Ok(())
}

/// Waits until the upstream has sent every byte of a blob, and checks that it sent none twice.
async fn upstream_sent_once(upstream: &Upstream, digest: &Digest, size: u64) -> Result<()> {
    let sent = async || {
        let accesses = upstream.content_accesses().await.unwrap_or_default();
        let bodies = accesses
            .iter()
            .filter(|access| access.path.ends_with(&digest.to_string()));
        bodies.map(|access| access.body_bytes).sum::<u64>()
    };
    eventually("the upstream has sent the blob", async || {
        sent().await >= size
    })
    .await;
    let sent = sent().await;
    // A probe of the size (one byte, U8 of the contract) is no second transfer.
    ensure!(
        sent <= size + 1,
        "{sent} bytes left the upstream for a blob of {size}"
    );
    Ok(())
}

#[tokio::test]
async fn buildkit_names_the_upstream_twice() -> Result<()> {
    let image = Image::of_two_platforms("buildkit")?;
    let (_upstream, node) = node_with(&image).await?;
    let get = async |path: &str| {
        let request = Request::get(&format!("/v2/docker.io/library/app/{path}?ns=docker.io"));
        node.send(request.header("User-Agent", "buildkit/v0.32"))
            .await
    };
    let head =
        Request::head("/v2/docker.io/library/app/manifests/1?ns=docker.io").header("Accept", "*/*");
    let head = node.send(head).await?;
    ensure!(head.status() == 200, "{head:?}");
    let digest = head
        .header("docker-content-digest")
        .context("HEAD names the digest")?;
    ensure!(digest == image.root().digest.to_string(), "{digest}");
    let index = get(&format!("manifests/{digest}")).await?;
    ensure!(
        index.body == image.read(&image.root().digest)?,
        "another index"
    );
    // Only the platform it builds for.
    let platform = image.platform();
    let manifest = get(&format!("manifests/{}", platform.manifest.digest)).await?;
    ensure!(
        manifest.body == image.read(&platform.manifest.digest)?,
        "another manifest"
    );
    for content in [&platform.config, &platform.layers[0].blob] {
        let blob = get(&format!("blobs/{}", content.digest)).await?;
        ensure!(blob.body == image.read(&content.digest)?, "another blob");
    }
    Ok(())
}

#[tokio::test]
async fn dockerd_with_a_path_in_its_mirror_pulls_by_prefix() -> Result<()> {
    // Newer than Debian 12's: that one refuses a mirror with a path.
    let image = Image::runnable("form C")?;
    let (_upstream, node) = node_with(&image).await?;
    for prefix in ["docker.io", "dockerhub"] {
        let ping = node.send(Request::get(&format!("/{prefix}/v2/"))).await?;
        ensure!(ping.status() == 200, "{ping:?}");
        let head = node
            .send(Request::head(&format!(
                "/{prefix}/v2/library/app/manifests/1"
            )))
            .await?;
        ensure!(
            head.header("docker-content-digest") == Some(&image.root().digest.to_string()),
            "{head:?}"
        );
        let blob = &image.platform().config;
        let blob = node
            .send(Request::get(&format!(
                "/{prefix}/v2/library/app/blobs/{}",
                blob.digest
            )))
            .await?;
        ensure!(
            blob.body == image.read(&image.platform().config.digest)?,
            "{blob:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_blob_is_served_although_its_manifest_was_never_asked_for() -> Result<()> {
    // containerd and BuildKit choose the host anew for every request (N9).
    let image = Image::runnable("lazy")?;
    let (_upstream, node) = node_with(&image).await?;
    let layer = &image.platform().layers[0].blob;
    let answer = node
        .send(Request::get(&format!(
            "/v2/library/app/blobs/{}?ns=docker.io",
            layer.digest
        )))
        .await?;
    ensure!(
        answer.status() == 200 && answer.body == image.read(&layer.digest)?,
        "{:?}",
        answer.head
    );
    Ok(())
}

#[tokio::test]
async fn a_tls_client_learns_at_once_that_the_port_speaks_plain_http() -> Result<()> {
    let image = Image::runnable("tls")?;
    let (_upstream, node) = node_with(&image).await?;
    // The head of a TLS 1.2 record with a ClientHello, as Go sends it. Go falls back to plain HTTP
    // only when the first five bytes of the answer are `HTTP/` (T2).
    let mut hello = vec![
        0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03,
    ];
    hello.resize(5 + 0xc8, 0x5a);
    let mut stream = TcpStream::connect(node.address()).await?;
    stream.write_all(&hello).await?;
    let mut answer = [0; 5];
    let read = stream.read_exact(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(5), read)
        .await
        .context("no answer to a TLS hello")??;
    ensure!(&answer == b"HTTP/", "{answer:?}");
    Ok(())
}
