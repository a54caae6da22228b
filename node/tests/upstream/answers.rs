//! What is made of an answer: manifests, blobs and their ranges, lists, and answers that lie.

use millrace::upstream::error::{Defect, Outage};
use millrace::upstream::{FetchError, Upstream};
use millrace_protocol::oci::{Algorithm, Digest, MediaType};

use super::fake::{Fake, Reply};
use super::{MANIFEST, digest, manifest, pull, read_blob, repository, soon, tag, upstream};

#[tokio::test]
async fn a_manifest_comes_as_it_was_sent_and_is_asked_for_with_every_type() {
    let stated = Digest::of(Algorithm::Sha256, MANIFEST.as_bytes());
    let fake =
        Fake::start(move |_| manifest().header("docker-content-digest", stated.to_string())).await;
    let upstream = upstream(&fake, "");
    let found = upstream
        .fetch_manifest(&repository(), &tag(), soon())
        .await
        .expect("a manifest");
    assert_eq!(found.bytes, MANIFEST);
    assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
    assert_eq!(found.stated_digest, Some(stated));
    let head = upstream
        .head_manifest(&repository(), &tag(), soon())
        .await
        .expect("a head");
    assert_eq!(
        (head.digest, head.size),
        (Some(stated), Some(MANIFEST.len() as u64))
    );
    let seen = fake.seen("/v2/team/app/manifests/v1");
    assert_eq!([&*seen[0].method, &*seen[1].method], ["GET", "HEAD"]);
    for seen in seen {
        assert!(
            MediaType::MANIFESTS
                .iter()
                .all(|kind| seen.header("accept").contains(kind))
        );
        assert_eq!(seen.header("accept-encoding"), "identity");
    }
}

/// Demands that the whole blob comes when it is asked for from `offset`, and that its size is known.
async fn assert_whole_in_place_of(upstream: &Upstream, offset: u64) {
    assert_eq!(
        read_blob(upstream, offset).await.expect("a blob"),
        (0, "0123456789".to_owned())
    );
    let size = upstream.probe_blob(&repository(), &digest(), soon()).await;
    assert_eq!(size.expect("it exists"), Some(10));
}

#[tokio::test]
async fn a_range_may_be_answered_by_the_whole() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789")).await;
    let upstream = upstream(&fake, "");
    assert_whole_in_place_of(&upstream, 5).await;
    let seen = fake.seen("/blobs/");
    assert_eq!(
        (seen[0].header("range"), seen[1].header("range")),
        ("bytes=5-", "bytes=0-0")
    );
    assert_eq!(
        seen[1].method, "GET",
        "some registries answer HEAD of a blob with 401"
    );
}

#[tokio::test]
async fn a_range_beyond_the_end_is_asked_again_as_the_whole() {
    let fake = Fake::start(|seen| match seen.header("range") {
        "" => Reply::new(200, "0123456789"),
        _ => Reply::new(416, "").header("content-range", "bytes */10"),
    })
    .await;
    let upstream = upstream(&fake, "");
    assert_whole_in_place_of(&upstream, 99).await;
}

#[tokio::test]
async fn bodies_that_lie_about_their_length_never_end_quietly() {
    let short = Reply::new(200, "01234").stating(Some(10));
    let short_part = Reply::new(206, "567")
        .header("content-range", "bytes 5-9/10")
        .stating(None);
    let long_part = Reply::new(206, "56789abc")
        .header("content-range", "bytes 5-9/10")
        .stating(None);
    let wrong_part = Reply::new(206, "789").header("content-range", "bytes 7-9/10");
    for (reply, lies) in [
        (short, false),
        (short_part, false),
        (long_part, true),
        (wrong_part, true),
    ] {
        let answer = reply.clone();
        let fake = Fake::start(move |_| answer.clone()).await;
        let error = read_blob(&upstream(&fake, ""), 5).await.expect_err("a lie");
        let interrupted = matches!(
            error,
            FetchError::Unavailable {
                reason: Outage::Interrupted,
                ..
            }
        );
        let bad = matches!(error, FetchError::BadAnswer { .. });
        assert_eq!((interrupted, bad), (!lies, lies), "{reply:?}: {error}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let fake = Fake::start(|_| Reply::new(200, "0123456789").stating(None)).await;
    let upstream = upstream(&fake, "");
    let body = upstream
        .open_blob(&repository(), &digest(), 0, soon())
        .await
        .expect("a blob");
    assert_eq!(body.size(), None);
    assert_eq!(
        read_blob(&upstream, 0).await.expect("a blob"),
        (0, "0123456789".to_owned())
    );
}

#[tokio::test]
async fn compressed_content_is_refused() {
    let fake =
        Fake::start(|_| Reply::new(200, "\u{1f}\u{8b}").header("content-encoding", "gzip")).await;
    let upstream = upstream(&fake, "");
    for error in [
        pull(&upstream).await.expect_err("compressed"),
        read_blob(&upstream, 0).await.expect_err("compressed"),
    ] {
        assert!(
            matches!(
                error,
                FetchError::BadAnswer {
                    defect: Defect::Encoded(_),
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(fake.seen("").len(), 2, "a lie is not worth another try");
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_refused() {
    let fake = Fake::start(|_| Reply::new(200, vec![b' '; (8 << 20) + 1]).stating(None)).await;
    let error = pull(&upstream(&fake, "")).await.expect_err("too large");
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_head_need_not_say_anything() {
    for reply in [
        Reply::new(200, ""),
        Reply::new(405, ""),
        Reply::new(501, ""),
    ] {
        let answer = reply.clone();
        let fake = Fake::start(move |_| answer.clone()).await;
        let head = upstream(&fake, "")
            .head_manifest(&repository(), &tag(), soon())
            .await;
        assert_eq!(head.map(|head| head.digest).ok(), Some(None), "{reply:?}");
    }
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let fake = Fake::start(|seen| match seen.target.as_str() {
        "/v2/team/app/tags/list?n=2" => Reply::new(200, r#"{"name":"team/app","tags":["a","b"]}"#)
            .header("link", r#"</v2/team/app/tags/list?n=2&last=b>; rel="next""#),
        "/v2/team/app/tags/list?n=2&last=b" => {
            Reply::new(200, r#"{"name":"team/app","tags":null}"#)
        }
        _ => Reply::new(200, "<html>"),
    })
    .await;
    let upstream = upstream(&fake, "");
    let page = upstream
        .list_tags(&repository(), "n=2", soon())
        .await
        .expect("a page");
    assert_eq!(page.tags, ["a", "b"]);
    let next = page.next_query.expect("another page");
    let page = upstream
        .list_tags(&repository(), &next, soon())
        .await
        .expect("a page");
    assert_eq!((page.tags.len(), page.next_query), (0, None));
    let error = upstream
        .list_tags(&repository(), "", soon())
        .await
        .expect_err("no JSON");
    assert!(
        matches!(
            error,
            FetchError::BadAnswer {
                defect: Defect::Malformed(_),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn referrers_are_never_empty_because_of_an_error() {
    let index = r#"{"schemaVersion":2,"manifests":[{"x":1}]}"#;
    // What the API and the tag schema answer, and what comes of it.
    let cases = [
        ((200, index), (500, ""), Ok(index)),
        ((404, ""), (200, index), Ok(index)),
        ((404, ""), (404, ""), Ok("\"manifests\":[]")),
        ((404, ""), (500, ""), Err(())),
        ((500, ""), (404, ""), Err(())),
        ((403, ""), (404, ""), Err(())),
        ((200, "{}"), (404, ""), Err(())),
        ((200, "<html>"), (404, ""), Err(())),
    ];
    for (api, tag, expected) in cases {
        let fake = Fake::start(move |seen| {
            let (status, body) = if seen.target.contains("/referrers/") {
                api
            } else {
                tag
            };
            Reply::new(status, body)
        })
        .await;
        let found = upstream(&fake, "")
            .referrers(&repository(), &digest(), "", soon())
            .await;
        let found = found.map(|found| String::from_utf8(found.body.to_vec()).expect("text"));
        match expected {
            Ok(part) => assert!(found.expect("referrers").contains(part), "{api:?} {tag:?}"),
            Err(()) => assert!(found.is_err(), "{api:?} {tag:?} {found:?}"),
        }
        if api.0 == 404 {
            let tag = format!(
                "/v2/team/app/manifests/{}",
                digest().to_string().replace(':', "-")
            );
            assert!(!fake.seen(&tag).is_empty());
        }
    }
}
