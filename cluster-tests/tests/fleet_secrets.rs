//! What leaves a cluster's nodes, in whatever direction, holds no secret: what they print and show,
//! what they say to each other, and what they send to where an upstream redirects.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use millrace_cluster_tests::component;
use millrace_cluster_tests::condition::patience;
use millrace_cluster_tests::fake::{Bearer, Canned, Fake, Guard, Image, Record, Then, When, noise};
use millrace_cluster_tests::fleet::{Fleet, Scene, write_secret};
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::process::run;
use serde_json::json;
use tempfile::TempDir;

/// What every secret of a node or a client contains.
const MARK: &str = "zzmarkedzz";

/// What the signature in a redirect contains: the place that it leads to has to see it.
const SIGNED: &str = "zzsignedzz";

/// How the tokens of a fake begin.
const TOKEN: &str = "token-of-a-fake";

const UPSTREAM_USER: &str = "mirror";

/// What members say to each other in these tests, as the log shows it.
const SAID: [&str; 6] = [
    "Open(OpenBlob",
    "Opened {",
    "Manifest(AskManifest",
    "Resolve(ResolveTag",
    "Announcement {",
    "Greeting {",
];

fn upstream_password() -> String {
    format!("upstream-{MARK}")
}

fn client_login() -> String {
    format!("ann:client-{MARK}")
}

/// The secrets as they are, and as they are encoded in requests.
fn secrets() -> Vec<String> {
    let upstream = format!("{UPSTREAM_USER}:{}", upstream_password());
    let encoded = [upstream, client_login()].map(|pair| BASE64_STANDARD.encode(pair));
    let plain = [MARK, TOKEN].map(str::to_owned);
    [plain, encoded].concat()
}

fn is_in_none(told: &str, secrets: &[String]) -> Result<()> {
    for secret in secrets {
        let found = told.lines().find(|line| line.contains(secret.as_str()));
        ensure!(found.is_none(), "{secret} came out: {found:?}");
    }
    Ok(())
}

/// Three nodes with every secret that there is, in front of a registry that gives tokens and
/// redirects every layer to `cdn` with a signature.
async fn start(cdn: &Fake, layers: &[bytes::Bytes], folder: &Path) -> Result<(Scene, Image)> {
    let fake = Fake::start().await?;
    let image = fake.add_image("app", "latest", layers);
    cdn.add_image("app", "latest", layers);
    fake.protect(Guard::Bearer(
        Bearer::at(&fake.url()).login(UPSTREAM_USER, &upstream_password()),
    ));
    for layer in &image.layers {
        let signed = format!("{}/v2/app/blobs/{layer}?signature={SIGNED}", cdn.url());
        let admitted = When::get(&layer.to_string()).with("authorization", " ");
        fake.on(admitted, Then::answer(Canned::redirect(&signed)));
    }
    let (users, secret) = (folder.join("htpasswd"), folder.join("secret"));
    let mut htpasswd = Command::new(component::find("htpasswd")?);
    let (name, password) = client_login().split_once(':').map(own).unwrap_or_default();
    htpasswd.arg("-cbB").arg(&users).args([name, password]);
    run(&htpasswd, patience()).await?;
    write_secret(
        &secret,
        &[&format!("cluster-{MARK}-of-some-length-as-is-due")],
    )?;
    let plan = Fleet::of(3)
        .set("cluster/secret_file", secret.display().to_string())
        .set("auth/htpasswd/realm", "mirror")
        .set("auth/htpasswd/path", users.display().to_string())
        .set("upstreams/fake/username", UPSTREAM_USER)
        .set("upstreams/fake/password", upstream_password())
        .set(
            "upstreams/fake/redirect_hosts",
            json!([cdn.address().to_string()]),
        )
        // The word alone leaves the libraries out.
        .set("log/level", "trace,millrace=trace");
    Ok((Scene::before(fake, plan).await?, image))
}

fn own((name, password): (&str, &str)) -> (String, String) {
    (name.to_owned(), password.to_owned())
}

/// Pulls everything through every node, and returns what the nodes answered and show.
async fn pull_everywhere(fleet: &Fleet, image: &Image) -> Result<String> {
    let basic = format!("Basic {}", BASE64_STANDARD.encode(client_login()));
    let root = "/v2/fake/app";
    let blobs = image.layers.iter().chain([&image.config]);
    let mut paths: Vec<String> = blobs.map(|blob| format!("{root}/blobs/{blob}")).collect();
    paths.insert(0, format!("{root}/manifests/latest"));
    let mut told = String::new();
    for index in 0..fleet.size() {
        let node = fleet.node(index);
        for path in &paths {
            let request = Request::get(path).header("Authorization", &basic);
            let answer = node.send(request).await?;
            ensure!(answer.status() == 200, "{path}: {answer:?}");
            told.push_str(&format!("{:?}\n", answer.head));
        }
        for page in ["/metrics", "/status"] {
            let shown = Request::get(page).send(node.debug_address()).await?;
            told.push_str(&String::from_utf8_lossy(&shown.body));
        }
    }
    Ok(told)
}

fn lines(records: Vec<Record>) -> String {
    let line = |record: Record| format!("{} {:?}\n", record.target, record.headers);
    records.into_iter().map(line).collect()
}

#[tokio::test]
async fn members_and_redirect_targets_are_told_no_secret() -> Result<()> {
    let (cdn, folder) = (Fake::start().await?, TempDir::new()?);
    let layers = [noise(1, 3 << 20), noise(2, 100_000)];
    let (scene, image) = start(&cdn, &layers, folder.path()).await?;
    let mut told = pull_everywhere(&scene.fleet, &image).await?;
    let fleet = scene.fleet;
    for index in 0..fleet.size() {
        told.push_str(&fleet.node(index).log());
    }
    for said in SAID {
        ensure!(
            told.contains(said),
            "the log does not show what was said: {said}"
        );
    }
    let secrets = secrets();
    is_in_none(&told, &secrets)?;
    is_in_none(&told, &[SIGNED.to_owned()])?;

    let redirected = cdn.records();
    ensure!(redirected.len() >= image.layers.len(), "{redirected:?}");
    is_in_none(&lines(redirected), &secrets)?;
    // The upstream is shown this node's credentials, and nobody else's.
    let client = BASE64_STANDARD.encode(client_login());
    is_in_none(
        &lines(scene.fake.records()),
        &[client, format!("client-{MARK}")],
    )
}
