//! Credentials go only where they belong: the client's nowhere, the node's to its upstream.

use std::net::Ipv4Addr;

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_cluster_tests::fake::{
    Bearer, Canned, Ended, Fake, Guard, Image, Scene, Then, When, assert_whole, code_of, noise,
};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::node::NodeBuilder;
use serde_json::json;

const USER: &str = "robot-of-the-node";
const PASSWORD: &str = "hunter2-of-the-node";

/// `Basic` of `hubuser:secret-of-the-client`.
const CLIENT: &str = "Basic aHVidXNlcjpzZWNyZXQtb2YtdGhlLWNsaWVudA==";

/// Parts of secrets, clear and encoded, that belong into no record but those of their owner.
const CLIENT_SECRETS: [&str; 2] = ["aHVidXNlcj", "secret-of-the-client"];

/// The beginning of `robot-of-the-node:hunter2-of-the-node` in base64.
const NODE_SECRETS: [&str; 2] = ["cm9ib3Qtb2YtdGhlLW5vZGU6", PASSWORD];

fn with_login(node: NodeBuilder) -> NodeBuilder {
    node.set("upstreams/fake/username", USER)
        .set("upstreams/fake/password", PASSWORD)
        .set("log/level", "debug")
}

/// Demands that none of `secrets` was sent to `fake`, in whatever header or query.
fn assert_never_told(fake: &Fake, secrets: &[&str]) {
    for record in fake.records() {
        let text = format!("{} {:?}", record.target, record.headers);
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

/// Demands that the node printed and shows none of `secrets`.
async fn assert_not_shown(scene: &Scene, secrets: &[&str]) -> Result<()> {
    let mut texts = vec![("log", scene.node.log())];
    for page in ["/metrics", "/status"] {
        let answer = Request::get(page).send(scene.node.debug_address()).await?;
        assert_eq!(answer.status(), 200, "{page}");
        texts.push((page, String::from_utf8_lossy(&answer.body).into_owned()));
    }
    assert!(
        texts[0].1.contains("fake"),
        "the log at level debug is empty"
    );
    for (place, text) in texts {
        for secret in secrets {
            let found = text.lines().find(|line| line.contains(secret));
            assert_eq!(found, None, "{secret} in {place}");
        }
    }
    Ok(())
}

/// A node with credentials in front of a fake with `guard` that redirects blobs to another one.
async fn guarded(guard: impl FnOnce(&Fake) -> Guard) -> Result<(Scene, Fake, Image)> {
    let (fake, cdn) = (Fake::start().await?, Fake::start().await?);
    let layers = [noise(1, 100_000), noise(2, 100_000)];
    let image = fake.add_image("app", "latest", &layers);
    cdn.add_image("app", "latest", &layers);
    fake.protect(guard(&fake));
    for layer in &image.layers {
        let signed = format!(
            "{}/v2/app/blobs/{layer}?X-Amz-Signature=signed-for-a-while",
            cdn.url()
        );
        let admitted = When::get(&layer.to_string()).with("authorization", " ");
        fake.on(admitted, Then::answer(Canned::redirect(&signed)));
    }
    let hosts = json!([cdn.address().to_string()]);
    let scene = Scene::of(fake, |node| {
        with_login(node).set("upstreams/fake/redirect_hosts", hosts)
    })
    .await?;
    Ok((scene, cdn, image))
}

/// Pulls as a client that has its own credentials, and looks at who got to see what.
async fn pull_confines((scene, cdn, image): &(Scene, Fake, Image)) -> Result<()> {
    let blobs = image.layers.iter().map(|layer| scene.blob("app", layer));
    let requests = [
        scene.manifest("app", "latest"),
        scene.blob("app", &image.config),
    ];
    for request in requests.into_iter().chain(blobs) {
        let answer = scene.send(request.header("Authorization", CLIENT)).await?;
        assert_eq!(answer.status(), 200);
    }
    assert_never_told(&scene.fake, &CLIENT_SECRETS);
    assert_never_told(cdn, &CLIENT_SECRETS);
    assert_never_told(cdn, &NODE_SECRETS);
    let redirected = cdn.records();
    assert_eq!(redirected.len(), image.layers.len());
    for record in redirected {
        assert_eq!(record.header("authorization"), None, "{}", record.target);
    }
    let shown = [
        &CLIENT_SECRETS[..],
        &NODE_SECRETS[..],
        &["token-of-a-fake", "signed-for-a-while"],
    ];
    assert_not_shown(scene, &shown.concat()).await
}

#[tokio::test]
async fn a_bearer_token_is_got_with_the_nodes_login_and_stays_at_its_host() -> Result<()> {
    let bearer = |fake: &Fake| Guard::Bearer(Bearer::at(&fake.url()).login(USER, PASSWORD));
    let guarded = guarded(bearer).await?;
    pull_confines(&guarded).await?;
    let (scene, ..) = &guarded;
    let tokens = scene.fake.requests("GET", "/token");
    assert_eq!(tokens.len(), 1, "one token for one repository");
    Ok(())
}

#[tokio::test]
async fn user_and_password_stay_at_their_host() -> Result<()> {
    let basic = |_: &Fake| Guard::Basic(USER.to_owned(), PASSWORD.to_owned());
    pull_confines(&guarded(basic).await?).await
}

#[tokio::test]
async fn an_open_upstream_gets_no_credentials_unasked() -> Result<()> {
    let (scene, cdn, image) = guarded(|_| Guard::Open).await?;
    let request = scene
        .manifest("app", "latest")
        .header("Authorization", CLIENT);
    assert_whole(&scene.send(request).await?, &image.manifest_bytes);
    assert_never_told(&scene.fake, &CLIENT_SECRETS);
    assert_never_told(&scene.fake, &NODE_SECRETS);
    assert_eq!(cdn.records().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_foreign_token_service_gets_no_credentials() -> Result<()> {
    let foreign = Fake::start_at(Ipv4Addr::new(127, 0, 0, 2)).await?;
    let bearer = Bearer::at(&foreign.url()).login(USER, PASSWORD);
    foreign.protect(Guard::Bearer(bearer.clone()));
    let fake = Fake::start().await?;
    fake.add_image("app", "latest", &[noise(1, 1_000)]);
    fake.protect(Guard::Bearer(bearer));
    let scene = Scene::of(fake, with_login).await?;
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    assert!(answer.status() >= 400, "{}", answer.status());
    assert_eq!(answer.header("www-authenticate"), None);
    assert_never_told(&foreign, &NODE_SECRETS);
    Ok(())
}

#[tokio::test]
async fn a_foreign_token_service_that_is_configured_gets_them() -> Result<()> {
    let foreign = Fake::start_at(Ipv4Addr::new(127, 0, 0, 2)).await?;
    let bearer = Bearer::at(&foreign.url()).login(USER, PASSWORD);
    foreign.protect(Guard::Bearer(bearer.clone()));
    let fake = Fake::start().await?;
    let image = fake.add_image("app", "latest", &[noise(1, 1_000)]);
    fake.protect(Guard::Bearer(bearer));
    let hosts = json!([foreign.address().to_string()]);
    let scene = Scene::of(fake, |node| {
        with_login(node).set("upstreams/fake/token_hosts", hosts)
    })
    .await?;
    scene.pull("app", "latest", &image).await?;
    assert_eq!(foreign.count("GET", "/token"), 1);
    Ok(())
}

#[tokio::test]
async fn the_scope_is_made_here_whatever_the_challenge_says() -> Result<()> {
    for stated in [
        "",
        "repository:user/image:pull",
        "repository:team/app:pull,push",
    ] {
        let fake = Fake::start().await?;
        let image = fake.add_image("team/app", "latest", &[noise(1, 1_000)]);
        fake.protect(Guard::Bearer(Bearer::at(&fake.url()).scope(stated)));
        let scene = Scene::of(fake, |node| node).await?;
        scene.pull("team/app", "latest", &image).await?;
        for token in scene.fake.requests("GET", "/token") {
            let target = token.target.replace("%3A", ":").replace("%2F", "/");
            assert!(
                target.contains("scope=repository:team/app:pull"),
                "{target}"
            );
            assert!(!target.contains("push"), "{target}");
            assert!(target.contains("service=fake"), "{target}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_got_once_for_many_and_anew_when_it_expires() -> Result<()> {
    let fake = Fake::start().await?;
    let layers: Vec<_> = (0..8).map(|seed| noise(seed, 10_000)).collect();
    let image = fake.add_image("app", "latest", &layers);
    fake.protect(Guard::Bearer(Bearer::at(&fake.url())));
    let scene = Scene::of(fake, |node| node).await?;
    let half = |range: std::ops::Range<usize>| {
        try_join_all(range.map(|index| scene.send(scene.blob("app", &image.layers[index]))))
    };
    for answer in half(0..4).await? {
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(
        scene.fake.count("GET", "/token"),
        1,
        "every blob asked for its own token"
    );
    scene.fake.expire_tokens();
    for answer in half(4..8).await? {
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(scene.fake.count("GET", "/token"), 2);
    Ok(())
}

#[tokio::test]
async fn tokens_that_expire_at_once_are_enough() -> Result<()> {
    for seconds in [0, 1] {
        let fake = Fake::start().await?;
        let image = fake.add_image("app", "latest", &[noise(1, 10_000), noise(2, 10_000)]);
        fake.protect(Guard::Bearer(Bearer::at(&fake.url()).expires_in(seconds)));
        let scene = Scene::of(fake, |node| node).await?;
        scene.pull("app", "latest", &image).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_without_rights_is_a_refusal_and_no_loop() -> Result<()> {
    let fake = Fake::start().await?;
    fake.add_image("app", "latest", &[noise(1, 1_000)]);
    fake.protect(Guard::Bearer(Bearer::at(&fake.url()).fewer_rights()));
    let scene = Scene::of(fake, |node| node).await?;
    let answer = scene.send(scene.manifest("app", "latest")).await?;
    assert_eq!(
        (answer.status(), code_of(&answer).as_deref()),
        (404, Some("NAME_UNKNOWN"))
    );
    let requests = scene.fake.records().len();
    assert!(requests <= 8, "{requests} requests");
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_are_a_refusal_and_no_challenge() -> Result<()> {
    for guard in [
        |_: &str| Guard::Basic("somebody".into(), "else".into()),
        |url: &str| Guard::Bearer(Bearer::at(url).login("somebody", "else")),
    ] {
        let fake = Fake::start().await?;
        fake.add_image("app", "latest", &[noise(1, 1_000)]);
        fake.protect(guard(&fake.url()));
        let scene = Scene::of(fake, with_login).await?;
        let answer = scene.send(scene.manifest("app", "latest")).await?;
        assert_eq!(
            (answer.status(), code_of(&answer).as_deref()),
            (404, Some("NAME_UNKNOWN"))
        );
        assert_eq!(answer.header("www-authenticate"), None);
        let requests = scene.fake.records().len();
        assert!(requests <= 8, "{requests} requests");
        assert_not_shown(&scene, &NODE_SECRETS).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_password_file_is_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("password");
    std::fs::write(&path, format!("{PASSWORD}\n"))?;
    let fake = Fake::start().await?;
    let image = fake.add_image("app", "latest", &[noise(1, 1_000)]);
    fake.protect(Guard::Basic(USER.to_owned(), PASSWORD.to_owned()));
    let scene = Scene::of(fake, |node| {
        node.set("upstreams/fake/username", USER)
            .set("upstreams/fake/password_file", path.display().to_string())
    })
    .await?;
    scene.pull("app", "latest", &image).await
}

#[tokio::test]
async fn empty_and_foreign_credentials_of_clients_change_nothing() -> Result<()> {
    let scene = Scene::start().await?;
    let image = scene.fake.add_image("app", "latest", &[noise(1, 1_000)]);
    for authorization in ["Basic Og==", CLIENT, "Bearer whatever", "nonsense"] {
        let request = scene.manifest("app", "latest");
        let answer = scene
            .send(request.header("Authorization", authorization))
            .await?;
        assert_whole(&answer, &image.manifest_bytes);
    }
    for record in scene.fake.records() {
        assert_eq!(record.header("authorization"), None);
        assert_ne!(record.end, Some(Ended::Broken));
    }
    Ok(())
}
