//! Clients that mean harm or know no better: the node answers, forgets nothing, and goes on.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_cluster_tests::fake::{Fake, Scene, assert_whole, noise, sha256};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::load::meter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long the node may take to answer or to close; far above what it needs.
const LIMIT: Duration = Duration::from_secs(40);

/// Writes `bytes` as they stand and returns what comes back until the node closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // The node may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    // A reset is an end as well, but no end at all is a client that can hold a connection for ever.
    let _ = read.context("the node neither answers nor closes")?;
    Ok(answer)
}

async fn assert_well(scene: &Scene) -> Result<()> {
    let healthy = Request::get("/healthz").send(scene.node.debug_address());
    assert_eq!(healthy.await?.status(), 200);
    let ping = scene.send(Request::get("/v2/")).await?;
    assert_eq!(ping.status(), 200);
    Ok(())
}

#[tokio::test]
async fn garbage_is_answered_with_a_client_error_or_closed() -> Result<()> {
    let scene = Scene::start().await?;
    let long = "a".repeat(1_000_000);
    for (what, bytes) in [
        (
            "binary",
            vec![0_u8, 1, 2, 255, 254, b'\r', b'\n', b'\r', b'\n'],
        ),
        ("no version", b"GET /v2/\r\n\r\n".to_vec()),
        ("unknown version", b"GET /v2/ HTTP/9.9\r\n\r\n".to_vec()),
        ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("no path", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "bad header",
            b"GET /v2/ HTTP/1.1\r\nno colon here\r\n\r\n".to_vec(),
        ),
        (
            "two lengths",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
                .to_vec(),
        ),
        (
            "long path",
            format!("GET /v2/{long} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
        ),
        (
            "long header",
            format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n").into_bytes(),
        ),
        (
            "many headers",
            [
                "GET /v2/ HTTP/1.1\r\nHost: x\r\n",
                &"X: y\r\n".repeat(20_000),
                "\r\n",
            ]
            .concat()
            .into_bytes(),
        ),
    ] {
        let answer = raw(scene.node.address(), &bytes).await?;
        let line = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        let refused =
            answer.is_empty() || line.starts_with("HTTP/1.1 4") || line.starts_with("HTTP/1.1 505");
        assert!(refused, "{what}: {line}");
    }
    assert_well(&scene).await
}

#[tokio::test]
async fn a_tls_greeting_is_answered_in_plain_http() -> Result<()> {
    let scene = Scene::start().await?;
    // The beginning of a ClientHello, as long as its record says.
    let mut hello = vec![
        0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03,
    ];
    hello.resize(205, 0x42);
    let begin = Instant::now();
    let answer = raw(scene.node.address(), &hello).await?;
    let start = String::from_utf8_lossy(&answer[..answer.len().min(20)]).into_owned();
    assert!(
        start.starts_with("HTTP/"),
        "clients would take the mirror for broken: {start:?}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn names_and_digests_that_are_none_are_refused_without_asking_upstream() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = sha256(b"anything");
    let hex = digest.hex();
    let long = "a".repeat(5_000);
    for target in [
        "/v2/fake/app/blobs/sha256:totallywrong".to_owned(),
        format!("/v2/fake/app/blobs/sha256:{}", hex.to_uppercase()),
        format!("/v2/fake/app/blobs/sha256:{}", &hex[1..]),
        format!("/v2/fake/app/blobs/md5:{}", &hex[..32]),
        format!("/v2/fake/app/blobs/{hex}"),
        "/v2/fake/app/blobs/sha256:../../../../etc/passwd".to_owned(),
        "/v2/fake/app/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd".to_owned(),
        "/v2/fake/app/blobs/..".to_owned(),
        format!("/v2/fake/../../etc/blobs/{digest}"),
        format!("/v2/fake/%2e%2e/%2e%2e/etc/blobs/{digest}"),
        format!("/v2/fake/..%2f..%2fetc/blobs/{digest}"),
        format!("/v2/fake/app%00/blobs/{digest}"),
        format!("/v2/fake/app%zz/blobs/{digest}"),
        format!("/v2/fake/app%/blobs/{digest}"),
        format!("/v2/fake/app%ff%fe/blobs/{digest}"),
        format!("/v2/fake/APP/blobs/{digest}"),
        format!("/v2/fake//blobs/{digest}"),
        format!("/v2/fake/app//x/blobs/{digest}"),
        format!("/v2/fake/-app/blobs/{digest}"),
        format!("/v2/fake/{long}/blobs/{digest}"),
        format!("/v2/fake/app\\..\\x/blobs/{digest}"),
        format!("/v2/fake/app/manifests/{}", "t".repeat(129)),
        "/v2/fake/app/manifests/.INVALID_MANIFEST_NAME".to_owned(),
        "/v2/fake/app/manifests/a%20b".to_owned(),
        "/v2/fake/app/manifests/%0d%0aX-Injected:%20yes".to_owned(),
        "/v2/fake/app/manifests/../../../secret".to_owned(),
        "/v2/fake/app/manifests/".to_owned(),
        "/v2/fake/app/referrers/latest".to_owned(),
        "/v2/fake/app/referrers/sha256:short".to_owned(),
        "/v2/fake/app/blobs/uploads/some-id".to_owned(),
        "/v2/fake/app/unheard/of".to_owned(),
        format!("/v2/app/blobs/{digest}?ns=%zz"),
        format!("/v2/app/blobs/{digest}?ns=%0d%0aHost:%20evil"),
        format!("/v2/app/blobs/{digest}?ns=fake%2f..%2f.."),
        "/v2/_oci/ext/discover".to_owned(),
        "/extensions/v2/app".to_owned(),
        "/../../etc/passwd".to_owned(),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = scene.send(Request::new(method, &target)).await;
            let answer = answer.with_context(|| format!("{method} {target}"))?;
            let status = answer.status();
            assert!((400..500).contains(&status), "{method} {target}: {status}");
            assert_eq!(answer.header("x-injected"), None);
        }
    }
    let asked: Vec<_> = scene
        .fake
        .records()
        .into_iter()
        .map(|record| record.target)
        .collect();
    assert_eq!(asked, Vec::<String>::new());
    let referrers = Request::get("/v2/fake/app/referrers/sha256:short");
    assert_eq!(
        scene.send(referrers).await?.status(),
        400,
        "the specification demands it"
    );
    assert_well(&scene).await
}

/// How much memory a node may take for one client that asks for many ranges: less than four times
/// what it asks them of.
const FOR_RANGES: u64 = 16 * 1024 * 1024;

#[tokio::test]
async fn a_thousand_ranges_cost_neither_memory_nor_a_server_error() -> Result<()> {
    let scene = Scene::start().await?;
    let content = noise(1, 4 * 1024 * 1024);
    let digest = scene.fake.add_blob("app", content.clone());
    assert_whole(&scene.send(scene.blob("app", &digest)).await?, &content);
    let many = |range: fn(usize) -> String| {
        let ranges: Vec<_> = (0..1_000).map(range).collect();
        format!("bytes={}", ranges.join(","))
    };
    // A blob is whole for its client before it is kept.
    scene.settle().await;
    let node = scene.node.process_id();
    meter::forget_peak(node)?;
    let before = meter::resident_bytes(node)?;
    for ranges in [
        many(|index| format!("{}-{}", index * 10, index * 10 + 1)),
        many(|_| "0-".to_owned()),
        many(|index| format!("-{}", index + 1)),
        format!("bytes={}-{}", u64::MAX, u64::MAX),
        "bytes=0-18446744073709551616".to_owned(),
        "bytes=--5".to_owned(),
        "bytes=".to_owned(),
        ",,,".to_owned(),
    ] {
        let request = scene.blob("app", &digest).header("Range", &ranges);
        let answer = scene.send(request).await?;
        let start = &ranges[..ranges.len().min(40)];
        assert!(
            [200, 206, 400, 416].contains(&answer.status()),
            "{start}: {}",
            answer.status()
        );
        let several = ranges.contains(",") && ranges.starts_with("bytes");
        assert!(
            !several || answer.status() != 416,
            "{start}: a hard failure for podman"
        );
        assert!(
            answer.body.len() <= 2 * content.len(),
            "{start}: amplified to {}",
            answer.body.len()
        );
    }
    let taken = meter::peak_resident_bytes(node)?.saturating_sub(before);
    assert!(taken <= FOR_RANGES, "{taken} bytes of memory");
    assert_well(&scene).await
}

#[tokio::test]
async fn slow_and_silent_clients_hold_up_nobody() -> Result<()> {
    let scene = Scene::start().await?;
    let mut idle = Vec::new();
    for index in 0..300 {
        let mut stream = TcpStream::connect(scene.node.address()).await?;
        let begin: &[u8] = match index % 3 {
            0 => b"",
            1 => b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
            _ => b"G",
        };
        stream.write_all(begin).await?;
        idle.push(stream);
    }
    let begin = Instant::now();
    assert_well(&scene).await?;
    let digest = scene.fake.add_blob("app", "content");
    assert_whole(&scene.send(scene.blob("app", &digest)).await?, b"content");
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    // Half a request is not waited for without end.
    let mut half = idle.swap_remove(1);
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(60), half.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "half a request holds a connection for ever");
    Ok(())
}

#[tokio::test]
async fn writes_are_refused_with_the_allowed_methods() -> Result<()> {
    let scene = Scene::start().await?;
    let digest = sha256(b"anything");
    for (method, target) in [
        ("POST", "/v2/fake/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/fake/app/blobs/uploads/id".to_owned()),
        ("PUT", "/v2/fake/app/blobs/uploads/id".to_owned()),
        ("PUT", "/v2/fake/app/manifests/latest".to_owned()),
        ("DELETE", "/v2/fake/app/manifests/latest".to_owned()),
        ("DELETE", format!("/v2/fake/app/blobs/{digest}")),
        ("BREW", "/v2/fake/app/manifests/latest".to_owned()),
    ] {
        let request = Request::new(method, &target).body("some body");
        let answer = scene.send(request).await?;
        assert_eq!(answer.status(), 405, "{method} {target}");
        assert_eq!(
            answer.header("allow"),
            Some("GET, HEAD"),
            "{method} {target}"
        );
        let code = millrace_cluster_tests::fake::code_of(&answer);
        assert_eq!(code.as_deref(), Some("UNSUPPORTED"), "{method} {target}");
    }
    assert_eq!(scene.fake.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_manifest_without_end_is_not_swallowed() -> Result<()> {
    let scene = Scene::start().await?;
    let huge = noise(1, 9 * 1024 * 1024);
    let digest = scene
        .fake
        .add_manifest("app", "application/vnd.oci.image.manifest.v1+json", huge);
    scene.fake.set_tag("app", "huge", &digest);
    for reference in ["huge".to_owned(), digest.to_string()] {
        let answer = scene.send(scene.manifest("app", reference)).await?;
        assert!(answer.status() >= 400, "{}", answer.status());
    }
    assert_well(&scene).await
}

#[tokio::test]
async fn other_places_that_a_manifest_names_are_not_asked() -> Result<()> {
    let scene = Scene::start().await?;
    let elsewhere = Fake::start().await?;
    let layer = noise(1, 1_000);
    let digest = elsewhere.add_blob("app", layer.clone());
    let image = scene.fake.add_image("app", "latest", &[layer]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest_bytes)?;
    let url = format!("{}/v2/app/blobs/{digest}", elsewhere.url());
    manifest["layers"][0]["urls"] = serde_json::json!([url]);
    let media_type = manifest["mediaType"].as_str().context("a type")?.to_owned();
    let bytes = manifest.to_string();
    let foreign = scene.fake.add_manifest("app", &media_type, bytes.clone());
    scene.fake.set_tag("app", "foreign", &foreign);
    scene.fake.remove_blob("app", &digest);
    let answer = scene.send(scene.manifest("app", "foreign")).await?;
    assert_whole(&answer, bytes.as_bytes());
    let answer = scene.send(scene.blob("app", &digest)).await?;
    assert_eq!(answer.status(), 404, "its upstream does not have it");
    assert!(elsewhere.records().is_empty(), "{:?}", elsewhere.records());
    Ok(())
}
