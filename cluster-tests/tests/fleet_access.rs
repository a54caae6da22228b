//! Credentials and rules in a cluster: who has credentials fetches, whoever has none is passed over, and
//! a private blob that is public elsewhere is neither given away nor missing.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use millrace_cluster_tests::component;
use millrace_cluster_tests::condition::patience;
use millrace_cluster_tests::fake::{Fake, Guard, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::process::run;
use serde_json::json;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// What the private registry wants.
const LOGIN: (&str, &str) = ("mirror", "hunter2");

#[tokio::test]
async fn a_home_without_credentials_is_passed_over_and_one_with_them_fetches_for_others()
-> Result<()> {
    let fake = Fake::start().await?;
    fake.protect(Guard::Basic(LOGIN.0.to_owned(), LOGIN.1.to_owned()));
    let plan = Fleet::of(3).each(|index, node| match index {
        0 => node
            .set("upstreams/fake/username", LOGIN.0)
            .set("upstreams/fake/password", LOGIN.1),
        _ => node,
    });
    let scene = Scene::before(fake, plan).await?;
    // The home is asked first, has nothing to show, and is told no: that is not the last word.
    let (_, content) = scene.fleet.content_of_home(1, 2 * MIB);
    let path = scene.add(&content);
    scene.pull(0, &path, &content).await?;
    let bodies = scene.fake.requests("GET", "/blobs/");
    let given = bodies
        .iter()
        .filter(|record| record.sent_bytes >= MIB as u64);
    assert_eq!(given.count(), 1, "{bodies:?}");
    // Another one of the same, and the home has credentials.
    let (_, content) = scene.fleet.content_of_home(0, 2 * MIB);
    let path = scene.add(&content);
    scene.pull(2, &path, &content).await?;
    let log: String = (0..3).map(|node| scene.fleet.node(node).log()).collect();
    ensure!(!log.contains(LOGIN.1), "the password is in a log");
    Ok(())
}

#[tokio::test]
async fn an_image_by_tag_is_had_past_a_home_without_credentials() -> Result<()> {
    let fake = Fake::start().await?;
    fake.protect(Guard::Basic(LOGIN.0.to_owned(), LOGIN.1.to_owned()));
    let plan = Fleet::of(3).each(|index, node| match index {
        0 | 2 => node
            .set("upstreams/fake/username", LOGIN.0)
            .set("upstreams/fake/password", LOGIN.1),
        _ => node,
    });
    let scene = Scene::before(fake, plan).await?;
    let layers = [noise(1, 2 * MIB), noise(2, MIB)];
    // The tag's home can show nothing; what the image is made of has its home anywhere.
    let tag = scene.fleet.tag_of_home(1, "team/app", "release");
    let image = scene.fake.add_image("team/app", &tag, &layers);
    for node in [0, 2] {
        let content = (&image, &layers[..]);
        scene.pull_image(node, ("team/app", &tag), content).await?;
    }
    // Who has no credentials does not get by others what the upstream refuses it.
    let manifest = format!("/v2/fake/team/app/manifests/{tag}");
    let answer = scene.fleet.node(1).send(Request::get(&manifest)).await?;
    ensure!(answer.status() != 200, "it was given away");
    Ok(())
}

#[tokio::test]
async fn a_private_blob_that_is_public_elsewhere_is_neither_given_away_nor_missing() -> Result<()> {
    let (corp, hub) = (Fake::start().await?, Fake::start().await?);
    corp.protect(Guard::Basic(LOGIN.0.to_owned(), LOGIN.1.to_owned()));
    let folder = TempDir::new()?;
    let users = folder.path().join("htpasswd");
    let mut htpasswd = Command::new(component::find("htpasswd")?);
    htpasswd.arg("-cbB").arg(&users).args(["ann", "secret"]);
    run(&htpasswd, patience()).await?;
    let users = users.display().to_string();
    // Clients of node 0 say who they are; those of the others are nobody that a rule names.
    let fleet = Fleet::of(3)
        .upstream("corp", &corp.url())
        .upstream("hub", &hub.url())
        .set("upstreams/corp/username", LOGIN.0)
        .set("upstreams/corp/password", LOGIN.1)
        .set(
            "upstreams/corp/access",
            json!([{"match": "*", "read": ["ann"]}]),
        )
        .each(move |index, node| match index {
            0 => node
                .set("auth/htpasswd/realm", "mirror")
                .set("auth/htpasswd/path", users.clone()),
            _ => node,
        })
        .start()
        .await?;
    let basic = format!("Basic {}", BASE64_STANDARD.encode("ann:secret"));
    let get = async |node: usize, path: String| {
        let request = Request::get(&path).header("Authorization", &basic);
        request.send(fleet.node(node).address()).await
    };
    // That a blob exists is as much a secret as its bytes. Those last: they bring it to the node.
    let ensure_hidden = async |node: usize, path: &str| {
        let (_, digest) = path.rsplit_once('/').context("a path")?;
        let known = format!("\"{digest}\"");
        for request in [
            Request::head(path),
            Request::head(path).header("If-None-Match", &known),
            Request::get(path).header("If-None-Match", &known),
            Request::get(path),
        ] {
            let what = format!("node {node}: {request:?}");
            let request = request.header("Authorization", &basic);
            let answer = request.send(fleet.node(node).address()).await?;
            ensure!(answer.status() == 404, "{what}: {:?}", answer.head);
        }
        Ok(())
    };
    for (round, home) in [0, 1, 2].into_iter().enumerate() {
        let (digest, content) = fleet.content_where(MIB + round, |walk| walk[0] == home);
        corp.add_blob("team/app", content.clone());
        hub.add_blob("open/app", content.clone());
        let private = format!("/v2/corp/team/app/blobs/{digest}");
        let public = format!("/v2/hub/open/app/blobs/{digest}");
        let elsewhere = format!("/v2/hub/empty/app/blobs/{digest}");
        let whole = get(0, private.clone()).await?;
        ensure!(whole.status() == 200 && whole.body == content, "{whole:?}");
        for node in [1, 2] {
            ensure_hidden(node, &private).await?;
            ensure_hidden(node, &elsewhere).await?;
        }
        for node in [2, 1] {
            let whole = get(node, public.clone()).await?;
            ensure!(whole.status() == 200, "node {node}: {:?}", whole.head);
            ensure!(whole.body == content, "node {node} gave other bytes");
            ensure_hidden(node, &private).await?;
        }
    }
    Ok(())
}
