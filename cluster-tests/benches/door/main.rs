//! The benchmark of the clients' door: what passwords and TLS cost, as one table.
//!
//! `cargo bench -p millrace-cluster-tests --bench door` after a release build of the daemon. Passwords
//! are compared with the same node without them; TLS with nginx, with the same certificate, the same
//! version and the cipher that the client prefers. It judges against the targets but fails only when
//! it could not measure, unless it is told to be strict.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use clap::{Parser, ValueEnum};
use millrace_cluster_tests::component;
use millrace_cluster_tests::http::Request;
use millrace_cluster_tests::image::{Image, MANIFEST};
use millrace_cluster_tests::load::discard::{Plan, discard};
use millrace_cluster_tests::load::nginx::Nginx;
use millrace_cluster_tests::load::rate::{Load, Rate};
use millrace_cluster_tests::load::runs::Runs;
use millrace_cluster_tests::load::table::{self, Figure, Target, Unit};
use millrace_cluster_tests::load::{machine, meter, seed};
use millrace_cluster_tests::node::{Node, NodeBuilder};
use millrace_cluster_tests::pki::Pki;
use millrace_cluster_tests::port::free_address;
use millrace_cluster_tests::process::run;
use millrace_cluster_tests::upstream::Upstream;
use tempfile::TempDir;

use choice::{Choice, name_of};

#[path = "../shared/choice.rs"]
mod choice;

const REPOSITORY: &str = "bench/image";
const CONNECTIONS: usize = 32;

/// Connections that fetch the blob: more than the machine has cores, so that none is idle.
const STREAMS: usize = 4;

/// Measures the clients' door and prints one table.
#[derive(Debug, Parser)]
#[command(name = "door")]
struct Options {
    #[command(flatten)]
    choice: Choice<Row>,
    /// How many interleaved runs the medians are taken over.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    Passwords,
    Tls,
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&name_of(self))
    }
}

impl Options {
    fn runs(&self) -> usize {
        self.choice.runs(self.runs)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(if self.choice.quick { 1 } else { 3 })
    }

    fn blob_bytes(&self) -> u64 {
        (if self.choice.quick { 8 } else { 64 }) << 20
    }
}

// Children end with the thread that started them: one thread drives everything.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let (runs, note) = (options.runs(), options.choice.note());
    println!("{runs} runs{note}\n{}", machine::describe());
    let measure = async |row| match row {
        Row::Passwords => passwords(&options).await,
        Row::Tls => tls(&options).await,
    };
    table::measure_all(options.choice.rows(), options.choice.strict, measure).await
}

/// A manifest that is here already, with a password and without.
async fn passwords(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("benchmark")?;
    upstream.push(&image, REPOSITORY, "1").await?;
    let folder = TempDir::new()?;
    let users = folder.path().join("htpasswd");
    let mut htpasswd = Command::new(component::find("htpasswd")?);
    htpasswd.args(["-cbB"]).arg(&users).args(["ann", "secret"]);
    run(&htpasswd, Duration::from_secs(30)).await?;
    let local = free_address()?;
    let node = node_before(&upstream)
        .set("auth/htpasswd/realm", "mirror")
        .set("auth/htpasswd/path", users.display().to_string())
        .set("http/local/addr", local.to_string())
        .start()
        .await?;
    let path = format!("/v2/{REPOSITORY}/manifests/1");
    let basic = format!(
        "Authorization: Basic {}",
        BASE64_STANDARD.encode("ann:secret")
    );
    let load = |address: SocketAddr| Load {
        url: format!("http://{address}{path}"),
        headers: vec![format!("Accept: {MANIFEST}"), basic.clone()],
        connections: CONNECTIONS,
        duration: options.duration(),
    };
    let (with, without) = (load(node.address()), load(local));
    Request::get(&path)
        .send(local)
        .await
        .context("the first request")?;
    let runs = Runs::collect(options.runs(), async |turn| {
        turn.pair(async || with.run().await, async || without.run().await)
            .await
    })
    .await?;
    Ok(vec![Figure::ratio(
        &runs,
        (
            format!("warm manifest by tag, {CONNECTIONS} connections"),
            "requests with htpasswd / without",
        ),
        (Unit::RequestsPerSecond, |rate: &Rate| rate.requests),
        Target::AtLeast(0.8),
    )])
}

/// Handshakes, and a blob that is here already.
async fn tls(options: &Options) -> Result<Vec<Figure>> {
    let upstream = Upstream::start().await?;
    let blob = seed::blob(&upstream, REPOSITORY, options.blob_bytes(), 4)?;
    let (files, pki) = (TempDir::new()?, Pki::create().await?);
    std::fs::hard_link(&blob.file, files.path().join("blob")).context("giving nginx its file")?;
    std::fs::write(files.path().join("ping"), "{}")?;
    let (chain, key) = pki.sign("node", "IP:127.0.0.1").await?;
    let nginx = Nginx::of_files_over_tls(files.path(), &chain, &key).await?;
    let (node, local) = node_with(&upstream, &chain, &key).await?;
    discard(&Plan::once(local, &blob.path)).context("the pull that fills the cache")?;
    let ours = Server {
        address: node.address(),
        process_id: node.process_id(),
    };
    let rival = Server {
        address: nginx.address(),
        process_id: nginx.process_id(),
    };
    let mut figures = handshakes(options, &ours, &rival).await?;
    figures.extend(warm_blob(options, (&ours, &blob.path), &rival).await?);
    Ok(figures)
}

fn node_before(upstream: &Upstream) -> NodeBuilder {
    Node::builder()
        .set("proxy/remoteurl", upstream.url())
        .set("log/level", "warn")
}

async fn node_with(upstream: &Upstream, chain: &Path, key: &Path) -> Result<(Node, SocketAddr)> {
    let local = free_address()?;
    let text = |path: &Path| PathBuf::from(path).display().to_string();
    let node = node_before(upstream)
        .set("http/local/addr", local.to_string())
        .set("http/tls/certificate", text(chain))
        .set("http/tls/key", text(key));
    Ok((node.start().await?, local))
}

/// A server under load.
struct Server {
    address: SocketAddr,
    process_id: u32,
}

/// What serving brought and cost.
struct Cost {
    rate: Rate,
    cpu_seconds: f64,
    seconds: f64,
}

impl Server {
    async fn serve(&self, path: &str, close: bool, options: &Options) -> Result<Cost> {
        let load = Load {
            url: format!("https://{}{path}", self.address),
            headers: close
                .then(|| "Connection: close".to_owned())
                .into_iter()
                .collect(),
            connections: if close { CONNECTIONS } else { STREAMS },
            duration: options.duration(),
        };
        let before = meter::cpu_time(self.process_id)?;
        let rate = load.run().await?;
        let cpu_time = meter::cpu_time(self.process_id)?.saturating_sub(before);
        Ok(Cost {
            rate,
            cpu_seconds: cpu_time.as_secs_f64(),
            seconds: options.duration().as_secs_f64(),
        })
    }
}

/// A connection for each request, and nobody resumes a session: full handshakes.
async fn handshakes(options: &Options, ours: &Server, rival: &Server) -> Result<Vec<Figure>> {
    let runs = Runs::collect(options.runs(), async |turn| {
        turn.pair(
            async || ours.serve("/v2/", true, options).await,
            async || rival.serve("/ping", true, options).await,
        )
        .await
    })
    .await?;
    let work = || format!("full TLS handshakes, {CONNECTIONS} connections");
    let per_handshake = |cost: &Cost| cost.cpu_seconds * 1e3 / (cost.rate.requests * cost.seconds);
    Ok(vec![
        Figure::ratio(
            &runs,
            (work(), "rate / nginx"),
            (Unit::RequestsPerSecond, |cost: &Cost| cost.rate.requests),
            Target::AtLeast(0.9),
        ),
        Figure::ratio(
            &runs,
            (work(), "CPU time each / nginx"),
            (Unit::Milliseconds, per_handshake),
            Target::None,
        ),
    ])
}

async fn warm_blob(
    options: &Options,
    (ours, path): (&Server, &str),
    rival: &Server,
) -> Result<Vec<Figure>> {
    let runs = Runs::collect(options.runs(), async |turn| {
        turn.pair(
            async || ours.serve(path, false, options).await,
            async || rival.serve("/blob", false, options).await,
        )
        .await
    })
    .await?;
    let work = || {
        format!(
            "warm blob {} MiB over TLS, {STREAMS} connections",
            options.blob_bytes() >> 20
        )
    };
    let per_gib =
        |cost: &Cost| cost.cpu_seconds * f64::from(1 << 30) / (cost.rate.bytes * cost.seconds);
    Ok(vec![
        Figure::ratio(
            &runs,
            (work(), "rate / nginx static"),
            (Unit::MegabytesPerSecond, |cost: &Cost| {
                cost.rate.bytes / 1e6
            }),
            Target::AtLeast(0.9),
        ),
        Figure::ratio(
            &runs,
            (work(), "CPU time / nginx static"),
            (Unit::CpuSecondsPerGib, per_gib),
            Target::None,
        ),
    ])
}
