//! The fake registry itself: it misbehaves as it is told, and remembers.

use std::time::Duration;

use anyhow::Result;
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fake::{Bearer, Canned, Ended, Fake, Gate, Guard, Then, When, noise};
use millrace_cluster_tests::http::{End, Request};

const PATH: &str = "/v2/app/blobs/";

#[tokio::test]
async fn a_healthy_answer_is_recorded_with_its_bytes() -> Result<()> {
    let fake = Fake::start().await?;
    let content = noise(1, 100_000);
    let path = format!("{PATH}{}", fake.add_blob("app", content.clone()));
    let range = Request::get(&path).header("Range", "bytes=90000-");
    let answer = range.send(fake.address()).await?;
    assert_eq!((answer.status(), answer.end), (206, End::Complete));
    assert!(answer.body == content[90_000..]);
    eventually("the answer is recorded", async || {
        let records = fake.records();
        records.len() == 1 && records[0].end == Some(Ended::Sent)
    })
    .await;
    let record = &fake.records()[0];
    assert_eq!(
        (record.range_start(), record.sent_bytes),
        (Some(90_000), 10_000)
    );
    Ok(())
}

#[tokio::test]
async fn bodies_are_broken_off_where_the_script_says() -> Result<()> {
    let fake = Fake::start().await?;
    let path = format!("{PATH}{}", fake.add_blob("app", noise(1, 300_000)));
    fake.on(When::get(PATH).first(1), Then::healthy().cut(70_000));
    fake.on(When::get(PATH).first(1), Then::healthy().reset(70_000));
    let answer = Request::get(&path).send(fake.address()).await?;
    assert_eq!((answer.body.len(), answer.end), (70_000, End::Short));
    let answer = Request::get(&path).send(fake.address()).await?;
    assert_eq!(answer.end, End::Reset);
    let answer = Request::get(&path).send(fake.address()).await?;
    assert_eq!((answer.body.len(), answer.end), (300_000, End::Complete));
    let ends: Vec<_> = fake.records().iter().map(|record| record.end).collect();
    assert_eq!(ends[..2], [Some(Ended::Broken), Some(Ended::Broken)]);
    Ok(())
}

#[tokio::test]
async fn a_stalled_body_goes_on_when_the_gate_opens_and_notices_who_leaves() -> Result<()> {
    let fake = Fake::start().await?;
    let path = format!("{PATH}{}", fake.add_blob("app", noise(1, 300_000)));
    let gate = Gate::default();
    fake.on(When::get(PATH), Then::healthy().stall(1_000, &gate));
    let leaver = Request::get(&path).open(fake.address()).await?;
    drop(leaver);
    eventually("the fake sees that the client left", async || {
        fake.records()[0].end == Some(Ended::Left)
    })
    .await;
    let mut waiter = Request::get(&path).open(fake.address()).await?;
    assert_eq!(waiter.read_at_least(1_000).await?.len(), 1_000);
    let more = tokio::time::timeout(Duration::from_millis(100), waiter.next()).await;
    assert!(more.is_err(), "bytes came before the gate opened");
    gate.open();
    assert_eq!(waiter.finish().await?.body.len(), 299_000);
    Ok(())
}

#[tokio::test]
async fn a_stopped_fake_refuses_and_comes_back_on_its_port() -> Result<()> {
    let fake = Fake::start().await?;
    let digest = fake.add_blob("app", "content");
    fake.stop().await;
    assert!(Request::get("/v2/").send(fake.address()).await.is_err());
    fake.resume().await?;
    let answer = Request::get(&format!("{PATH}{digest}"));
    assert_eq!(&answer.send(fake.address()).await?.body[..], b"content");
    Ok(())
}

#[tokio::test]
async fn a_token_opens_its_repository_until_it_expires() -> Result<()> {
    let fake = Fake::start().await?;
    let path = format!("{PATH}{}", fake.add_blob("app", "content"));
    fake.protect(Guard::Bearer(Bearer::at(&fake.url()).scope("")));
    let refusal = Request::get(&path).send(fake.address()).await?;
    assert_eq!(refusal.status(), 401);
    let challenge = refusal.header("www-authenticate").unwrap_or_default();
    assert!(
        challenge.ends_with(r#"service="fake",scope="""#),
        "{challenge}"
    );
    let empty = Request::get("/token?scope=").send(fake.address()).await?;
    assert_eq!(empty.status(), 403);
    let token = Request::get("/token?scope=repository%3Aapp%3Apull");
    let token = token.send(fake.address()).await?.json()?["token"].clone();
    let token = format!("Bearer {}", token.as_str().unwrap_or_default());
    let with_token = Request::get(&path).header("Authorization", &token);
    let other = Request::get("/v2/app2/tags/list").header("Authorization", &token);
    assert_eq!(with_token.clone().send(fake.address()).await?.status(), 200);
    assert_eq!(other.send(fake.address()).await?.status(), 401);
    fake.expire_tokens();
    assert_eq!(with_token.send(fake.address()).await?.status(), 401);
    Ok(())
}

#[tokio::test]
async fn lies_are_told_as_scripted() -> Result<()> {
    let fake = Fake::start().await?;
    let content = noise(1, 5_000);
    let path = format!("{PATH}{}", fake.add_blob("app", content.clone()));
    let lies = [
        Then::healthy().flip(4_999),
        Then::healthy().header("Content-Length", "6000"),
        Then::healthy().without("Content-Length"),
        Then::healthy().gzip(),
        Then::answer(Canned::redirect("http://127.0.0.2/").body("gone")),
    ];
    let mut answers = Vec::new();
    for lie in lies {
        fake.on(When::get(PATH).first(1), lie);
        answers.push(Request::get(&path).send(fake.address()).await?);
    }
    assert_eq!(answers[0].body[..4_999], content[..4_999]);
    assert_ne!(answers[0].body[4_999], content[4_999]);
    assert_eq!((answers[1].body.len(), answers[1].end), (5_000, End::Short));
    assert_eq!(
        (answers[2].header("content-length"), answers[2].body.len()),
        (None, 5_000)
    );
    assert_eq!(answers[3].header("content-encoding"), Some("gzip"));
    assert_ne!(answers[3].body, content);
    assert_eq!(answers[4].header("location"), Some("http://127.0.0.2/"));
    Ok(())
}
