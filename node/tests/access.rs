//! Who may read what: rules, links between content and repositories, revocation and grace.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "the upstreams' tests use more of it")]
mod fake;
#[path = "access/node.rs"]
mod node;
#[path = "registry/wire.rs"]
#[expect(dead_code, reason = "the registry's tests use more of it")]
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use fake::{Fake, Reply as Answer, Seen};
use node::{
    ANN, AT_ONCE, BOB, DEFAULT, MANIFEST, MUTE, Mood, SILENT, SOON, Times, blob_url, digest_of,
    files, manifest_url, private, start, start_again, start_in,
};
use tempfile::TempDir;
use tokio::sync::watch;
use wire::{Reply, get, send};

fn told(reply: &Reply) -> (u16, String) {
    (reply.status, reply.text().to_owned())
}

#[tokio::test]
async fn a_rule_keeps_out_and_does_not_tell_what_exists() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    assert_eq!(
        get(node.local, &blob_url("corp/team-a/app"), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        get(node.local, &blob_url("corp/team-b/app"), &[])
            .await
            .status,
        404
    );
    let asked = node.corp.seen("").len();
    for (there, not_there) in [
        (
            manifest_url("corp/team-a/app"),
            manifest_url("corp/team-a/none"),
        ),
        (blob_url("corp/team-a/app"), blob_url("corp/team-a/none")),
        (
            "/v2/corp/team-a/app/manifests/v1".to_owned(),
            "/v2/corp/team-a/app/manifests/none".to_owned(),
        ),
        (
            "/v2/corp/team-a/app/tags/list".to_owned(),
            "/v2/corp/team-a/none/tags/list".to_owned(),
        ),
        (
            manifest_url("corp/team-a/app").replace("manifests", "referrers"),
            manifest_url("corp/team-a/none").replace("manifests", "referrers"),
        ),
    ] {
        for method in ["GET", "HEAD"] {
            let one = send(node.public, method, &there, &[BOB]).await;
            let other = send(node.public, method, &not_there, &[BOB]).await;
            assert_eq!(one.status, 404, "{there}");
            assert_eq!(
                (one.head(), told(&one)),
                (other.head(), told(&other)),
                "{there}"
            );
        }
    }
    assert_eq!(
        node.corp.seen("").len(),
        asked,
        "who may not read made the node ask"
    );
    let catalog = async |who| {
        get(node.public, "/v2/_catalog", &[who])
            .await
            .text()
            .to_owned()
    };
    assert!(catalog(ANN).await.contains("team-a/app"));
    assert_eq!(catalog(BOB).await, r#"{"repositories":[]}"#);
}

#[tokio::test]
async fn content_with_credentials_is_for_the_authenticated_and_this_host() {
    let node = start(DEFAULT).await;
    assert_eq!(node.status(&blob_url("corp/shared/app"), BOB).await, 200);
    assert_eq!(
        get(node.local, &blob_url("corp/shared/app"), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        get(node.public, &blob_url("corp/shared/app"), &[])
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_digest_is_no_key_to_another_repository() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    // The repository of another registry, and one of the same that does not have it.
    for repository in ["open/other", "corp/other/app"] {
        for url in [blob_url(repository), manifest_url(repository)] {
            assert_eq!(node.status(&url, BOB).await, 404, "{url}");
            assert_eq!(
                send(node.public, "HEAD", &url, &[BOB]).await.status,
                404,
                "{url}"
            );
        }
    }
    // One that has it: the upstream says so once, by one byte, and that is kept.
    let before = node.probes();
    for _ in 0..3 {
        assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
        assert_eq!(
            node.status(&manifest_url("corp/team-b/app"), BOB).await,
            200
        );
    }
    assert_eq!(node.probes(), before + 1);
}

#[tokio::test]
async fn content_that_is_public_somewhere_is_for_everybody() {
    let node = start(DEFAULT).await;
    node.pull("open/app", ANN).await;
    let asked = (node.hub.seen("").len(), node.corp.seen("").len());
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    assert_eq!(node.status(&blob_url("open/other"), BOB).await, 200);
    assert_eq!((node.hub.seen("").len(), node.corp.seen("").len()), asked);
}

#[tokio::test]
async fn a_blob_on_its_way_is_not_for_everybody_either() {
    let node = start(DEFAULT).await;
    // It stalls, so that it stays on its way.
    let url = blob_url("corp/team-a/stalled");
    let mut pulling = tokio::net::TcpStream::connect(node.public)
        .await
        .expect("connects");
    let request = wire::head("GET", &url, &[ANN], "close");
    tokio::io::AsyncWriteExt::write_all(&mut pulling, request.as_bytes())
        .await
        .expect("sent");
    assert_eq!(wire::read_head(&mut pulling).await.status, 200);
    for method in ["GET", "HEAD"] {
        let reply = send(node.public, method, &blob_url("open/other"), &[BOB]).await;
        assert_eq!(reply.status, 404, "{method}");
        let reply = send(node.public, method, &blob_url("corp/other/app"), &[BOB]).await;
        assert_eq!(reply.status, 404, "{method}");
    }
}

#[tokio::test]
async fn a_question_that_has_no_answer_yet_confirms_nothing() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-b/app", BOB).await;
    let manifest = manifest_url("corp/team-a/app");
    assert_eq!(node.status(&manifest, ANN).await, 200);
    node.mood.store(403, Ordering::Relaxed);
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 404);
    let mute = format!("/v2/corp/team-a/app/blobs/{}", digest_of(MUTE));
    let asking = async {
        let begun = async {
            while node.corp.seen(&digest_of(MUTE).to_string()).is_empty() {
                tokio::task::yield_now().await;
            }
            send(node.public, "HEAD", &mute, &[ANN]).await.status
        };
        tokio::select! {
            reply = get(node.public, &mute, &[ANN]) => panic!("answered {}", reply.status),
            status = begun => status,
        }
    };
    let status = tokio::time::timeout(SOON, asking).await.expect("answered");
    assert_eq!(status, 404);
    assert_eq!(node.status(&manifest, ANN).await, 404, "it was denied");
}

/// An answer out of `team-a` is on its way when something else there is denied; then it comes.
async fn denied_behind(reference: &str, is_known: bool) {
    let held = format!("team-a/app/manifests/{reference}");
    let (open, gate) = watch::channel(is_known);
    let mood = Mood::new(AtomicU16::new(200));
    let (answers, what) = (private(Arc::clone(&mood)), held.clone());
    let corp = Fake::start(move |request| {
        let is_held =
            request.target.ends_with(&what) && !request.header("authorization").is_empty();
        match is_held {
            true => answers(request).after(gate.clone()),
            false => answers(request),
        }
    });
    let hub = Fake::start(|_| Answer::new(404, ""));
    let servers = (corp.await, hub.await, mood);
    let node = start_in(TempDir::new().expect("a folder"), DEFAULT, servers).await;
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    if is_known {
        assert_eq!(
            node.status(&manifest_url("corp/team-a/app"), ANN).await,
            200
        );
    }
    open.send_replace(false);
    let url = format!("/v2/corp/{held}");
    let denied = async {
        let is_asked = |seen: &Seen| !seen.header("authorization").is_empty();
        while !node.corp.seen(&held).iter().any(is_asked) {
            tokio::task::yield_now().await;
        }
        node.mood.store(403, Ordering::Relaxed);
        let status = node.status(&blob_url("corp/team-a/app"), ANN).await;
        open.send_replace(true);
        status
    };
    let both = async { tokio::join!(get(node.public, &url, &[ANN]), denied) };
    let (_, status) = tokio::time::timeout(SOON, both).await.expect("answered");
    assert_eq!(status, 404);
    let manifest = manifest_url("corp/team-a/app");
    assert_eq!(node.status(&manifest, ANN).await, 404, "{reference}");
}

#[tokio::test]
async fn an_answer_to_an_earlier_question_does_not_undo_a_denial() {
    denied_behind(&digest_of(MANIFEST).to_string(), false).await;
    denied_behind("v1", true).await;
}

#[tokio::test]
async fn what_the_upstream_revokes_is_revoked_here_and_an_outage_does_not_bring_it_back() {
    for refusal in [401, 403, 404] {
        let node = start(AT_ONCE).await;
        node.pull("corp/team-a/app", ANN).await;
        let urls = [blob_url("corp/team-a/app"), manifest_url("corp/team-a/app")];
        node.mood.store(refusal, Ordering::Relaxed);
        for url in &urls {
            assert_eq!(node.status(url, ANN).await, 404, "{refusal} {url}");
        }
        node.mood.store(500, Ordering::Relaxed);
        for url in &urls {
            assert_ne!(node.status(url, ANN).await, 200, "{refusal} {url}");
        }
        node.mood.store(200, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn the_upstreams_word_is_believed_for_a_while() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    let asked = node.corp.seen("").len();
    node.mood.store(403, Ordering::Relaxed);
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 200);
    assert_eq!(node.corp.seen("").len(), asked);
}

#[tokio::test]
async fn a_tag_that_was_checked_confirms_its_repository_and_no_other() {
    let node = start(DEFAULT).await;
    node.pull("corp/team-a/app", ANN).await;
    node.pull("corp/team-b/app", BOB).await;
    // A restart forgets what was confirmed.
    node.tasks.stop(SOON).await;
    let times = Times {
        tags: Duration::ZERO,
        ..DEFAULT
    };
    let node = start_again(node, times).await;
    let tag = "/v2/corp/team-a/app/manifests/v1";
    let before = node.corp.seen("").len();
    assert_eq!(node.status(tag, ANN).await, 200);
    let asked = node.corp.seen("").split_off(before);
    // The first is asked for its password.
    let asked: Vec<&str> = asked.iter().map(|seen| seen.target.as_str()).collect();
    assert!(
        asked.iter().all(|target| target.ends_with("/v1")),
        "{asked:?}"
    );
    let before = node.corp.seen("").len();
    assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, 200);
    assert_eq!(node.corp.seen("").len(), before, "it was confirmed");
    let probes = node.probes();
    assert_eq!(node.status(&blob_url("corp/team-b/app"), BOB).await, 200);
    assert_eq!(node.probes(), probes + 1);
}

#[tokio::test]
async fn while_the_upstream_is_away_the_grace_applies_and_then_ends() {
    let grace = |grace| Times { grace, ..AT_ONCE };
    for (times, status) in [(AT_ONCE, 200), (grace(Duration::ZERO), 503)] {
        let node = start(times).await;
        node.pull("corp/team-a/app", ANN).await;
        node.mood.store(500, Ordering::Relaxed);
        assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, status);
        assert_eq!(node.status(&blob_url("corp/team-a/app"), ANN).await, status);
    }
}

#[tokio::test]
async fn all_steps_of_a_request_together_take_no_longer_than_a_client_waits() {
    const BUDGET: Duration = Duration::from_secs(6);
    let times = Times {
        tags: Duration::ZERO,
        budget: BUDGET,
        ..AT_ONCE
    };
    let grace = Duration::ZERO;
    for (times, status) in [(times, 200), (Times { grace, ..times }, 503)] {
        let node = start(times).await;
        node.pull("corp/team-a/app", ANN).await;
        let tag = "/v2/corp/team-a/app/manifests/v1";
        assert_eq!(node.status(tag, ANN).await, 200);
        node.mood.store(SILENT, Ordering::Relaxed);
        // What the tag points to, then whether the repository may still be read.
        let (blob, asked) = (blob_url("corp/team-a/app"), Instant::now());
        let answers = tokio::join!(node.status(tag, ANN), node.status(&blob, ANN));
        assert_eq!(answers, (status, status));
        let waited = asked.elapsed();
        assert!(waited < BUDGET * 3 / 2, "{waited:?}");
    }
}

#[tokio::test]
async fn content_without_provenance_is_asked_for_where_access_is_restricted() {
    let node = start(DEFAULT).await;
    node.pull("open/app", ANN).await;
    node.tasks.stop(SOON).await;
    let mut lost = 0;
    for file in files(node.folder.path()) {
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            std::fs::remove_file(&file).expect("removed");
            lost += 1;
        }
    }
    assert!(lost > 0, "no sidecar was found");
    let node = start_again(node, DEFAULT).await;
    assert_eq!(node.status(&blob_url("open/other"), BOB).await, 404);
    let asked = node.hub.seen("/open/app/blobs/").len();
    assert_eq!(node.status(&blob_url("open/app"), BOB).await, 200);
    assert_eq!(
        node.hub.seen("/open/app/blobs/").len(),
        asked + 1,
        "asked once"
    );
    assert_eq!(
        node.status(&blob_url("open/other"), BOB).await,
        200,
        "now it is known to be public"
    );
}
