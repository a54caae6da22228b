//! The door of a real node: what an operator does to it, and that no secret comes out of it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use millrace_cluster_tests::component;
use millrace_cluster_tests::condition::{patience, within};
use millrace_cluster_tests::http::{Answer, Request};
use millrace_cluster_tests::image::Image;
use millrace_cluster_tests::node::{Node, NodeBuilder};
use millrace_cluster_tests::pki::Pki;
use millrace_cluster_tests::port::free_address;
use millrace_cluster_tests::process::run;
use millrace_cluster_tests::upstream::Upstream;
use tempfile::TempDir;

/// What every secret in these tests contains.
const MARK: &str = "zzmarkedzz";

const COMMAND_LIMIT: Duration = Duration::from_secs(30);

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

async fn htpasswd(file: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(component::find("htpasswd")?);
    command.arg(arguments[0]).arg(file).args(&arguments[1..]);
    run(&command, COMMAND_LIMIT).await.map(drop)
}

fn guarded(builder: NodeBuilder, users: &Path) -> NodeBuilder {
    builder
        .set("auth/htpasswd/realm", "mirror")
        .set("auth/htpasswd/path", users.display().to_string())
}

/// Runs `millrace user …` with `input`, and returns what it printed.
fn user(arguments: &[&str], input: &str) -> Result<(bool, String)> {
    let mut child = Command::new(component::millrace()?)
        .arg("user")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("piped")?
        .write_all(input.as_bytes())
        // Who refuses a name does not read a password.
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

#[tokio::test]
async fn users_come_and_go_while_the_node_runs() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("htpasswd");
    let path = file.to_str().context("a readable name")?;
    htpasswd(&file, &["-cbB", "ann", "first"]).await?;
    let node = guarded(Node::builder(), &file).start().await?;
    let status = async |pair: &str| -> Result<u16> {
        let request = Request::get("/v2/").header("Authorization", &basic(pair));
        Ok(node.send(request).await?.status())
    };
    ensure!(status("ann:first").await? == 200);
    ensure!(node.send(Request::get("/v2/")).await?.status() == 401);

    ensure!(user(&["add", "bob", "--file", path], "hunter2\n")? == (true, String::new()));
    let added = within(patience(), async || {
        status("bob:hunter2")
            .await
            .is_ok_and(|status| status == 200)
            .then_some(())
    });
    added.await.context("bob does not come in")?;
    ensure!(status("ann:first").await? == 200);
    ensure!(user(&["list", "--file", path], "")? == (true, "ann\nbob\n".to_owned()));
    // `htpasswd` agrees with what was written.
    htpasswd(&file, &["-vb", "bob", "hunter2"]).await?;

    ensure!(user(&["remove", "ann", "--file", path], "")?.0);
    let removed = within(patience(), async || {
        status("ann:first")
            .await
            .is_ok_and(|status| status == 401)
            .then_some(())
    });
    removed.await.context("ann still comes in")?;
    for (arguments, input) in [
        (["remove", "eve"], ""),
        (["add", "a:b"], "x\n"),
        (["add", "local"], "x\n"),
        (["add", "eve"], "\n"),
    ] {
        let (succeeded, text) = user(&[arguments[0], arguments[1], "--file", path], input)?;
        ensure!(!succeeded && !text.is_empty(), "{arguments:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_start_with_files_that_cannot_be_used_says_which() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("htpasswd");
    htpasswd(&file, &["-cbs", "ann", "hunter2"]).await?;
    let (chain, other) = (
        Pki::create().await?.sign("a", "IP:127.0.0.1").await?,
        Pki::create().await?,
    );
    let other = other.sign("b", "IP:127.0.0.1").await?;
    let tls = |chain: &Path, key: &Path| {
        Node::builder()
            .set("http/tls/certificate", chain.display().to_string())
            .set("http/tls/key", key.display().to_string())
    };
    for (builder, message) in [
        (
            guarded(Node::builder(), &file),
            "htpasswd:1: the password is not hashed by bcrypt",
        ),
        (
            guarded(Node::builder(), Path::new("/nowhere/htpasswd")),
            "cannot read /nowhere/htpasswd",
        ),
        (
            tls(&other.0, Path::new("/nowhere/key")),
            "cannot read /nowhere/key",
        ),
        (tls(&other.0, &file), "is damaged"),
        (tls(&chain.0, &other.1), "cannot read"),
    ] {
        let error = builder.start().await.err().context("it started")?;
        let error = format!("{error:?}");
        ensure!(error.contains(message), "{message} is not in {error}");
        ensure!(!error.contains("hunter2"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn openssl_speaks_both_versions_and_a_socket_answers_without_either() -> Result<()> {
    let (pki, folder) = (Pki::create().await?, TempDir::new()?);
    let (chain, key) = pki.sign("node", "IP:127.0.0.1").await?;
    let socket = folder.path().join("local.sock");
    let node = Node::builder()
        .set("http/tls/certificate", chain.display().to_string())
        .set("http/tls/key", key.display().to_string())
        .set("http/local/addr", format!("unix:{}", socket.display()))
        .start()
        .await?;
    for (version, known) in [("-tls1_2", true), ("-tls1_3", true), ("-tls1_1", false)] {
        let mut command = Command::new(component::find("openssl")?);
        command.args([
            "s_client",
            "-brief",
            "-verify_return_error",
            version,
            "-CAfile",
        ]);
        command
            .arg(pki.ca())
            .arg("-connect")
            .arg(node.address().to_string());
        command.stdin(Stdio::null());
        ensure!(command.output()?.status.success() == known, "{version}");
    }
    let mut stream = tokio::net::UnixStream::connect(&socket).await?;
    let request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request).await?;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let status = node.status().await?;
    ensure!(
        status["listeners"].to_string().contains("as local"),
        "{status}"
    );
    ensure!(status["tls"]["not_after_unix_seconds"].is_u64(), "{status}");
    Ok(())
}

/// Everything that is a secret is marked, everything is logged, and all that comes out is searched.
#[tokio::test]
async fn no_secret_comes_out() -> Result<()> {
    let upstream_password = format!("upstream-{MARK}");
    let upstream = Upstream::start_private("mirror", &upstream_password).await?;
    let image = Image::runnable("secrets")?;
    upstream.push(&image, "team/app", "1").await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("htpasswd");
    let password = format!("client-{MARK}");
    htpasswd(&file, &["-cbB", "ann", &password]).await?;
    let local = free_address()?;
    let mut node = guarded(Node::builder(), &file)
        .upstream("corp", &upstream.url())
        .set("upstreams/corp/username", "mirror")
        .set("upstreams/corp/password", upstream_password.as_str())
        .set("http/local/addr", local.to_string())
        // The word alone leaves the libraries out.
        .set("log/level", "trace,millrace=trace")
        .start()
        .await?;
    let answers = ask_everything(&node, local, &image, &password).await?;
    let served = answers
        .iter()
        .filter(|answer| answer.status() == 200)
        .count();
    ensure!(
        served > 20,
        "{served} answers were served, so little was tried"
    );
    let mut told = format!("{answers:?}{}", node.status().await?);
    told.push_str(&String::from_utf8_lossy(
        &Request::get("/metrics")
            .send(node.debug_address())
            .await?
            .body,
    ));
    for access in upstream.accesses().await? {
        told.push_str(&format!(
            "{} {} {}\n",
            access.method, access.path, access.query
        ));
    }
    node.stop().await?;
    let log = node.log();
    ensure!(log.contains("TRACE"), "the log is not at its highest level");
    told.push_str(&log);
    let pairs = [
        format!("ann:{password}"),
        format!("mirror:{upstream_password}"),
    ];
    let encoded = pairs.map(|pair| BASE64_STANDARD.encode(pair));
    is_in_none(&told, &[MARK, &encoded[0], &encoded[1]])
}

/// Sends right, wrong, foreign and huge credentials to every kind of endpoint of both listeners.
async fn ask_everything(
    node: &Node,
    local: SocketAddr,
    image: &Image,
    password: &str,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    let digest = image.platform().config.digest;
    for path in [
        "/v2/",
        "/v2/corp/team/app/manifests/1",
        "/v2/corp/team/app/tags/list",
        &format!("/v2/corp/team/app/blobs/{digest}"),
        "/v2/corp/none/app/manifests/1",
    ] {
        for pair in [
            format!("ann:{password}"),
            format!("ann:wrong-{MARK}"),
            format!("hub-{MARK}:{MARK}"),
            String::new(),
            format!("ann:{}", MARK.repeat(800)),
        ] {
            let basic = basic(&pair);
            for header in [basic.clone(), format!("Bearer {MARK}"), MARK.to_owned()] {
                let request = Request::get(path)
                    .header("Authorization", &header)
                    .header("Cookie", MARK);
                answers.push(node.send(request.clone()).await?);
                answers.push(request.send(local).await?);
            }
        }
    }
    Ok(answers)
}

fn is_in_none(told: &str, secrets: &[&str]) -> Result<()> {
    for secret in secrets {
        if let Some(at) = told.find(secret) {
            let line = told[..at].rfind('\n').map_or(0, |start| start + 1);
            let line = told[line..].lines().next().unwrap_or_default();
            anyhow::bail!("{secret} came out: {line}");
        }
    }
    Ok(())
}
