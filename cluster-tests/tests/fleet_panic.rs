//! A node in which a task panics: it goes on, no pull fails, its log stays one of JSON lines, the panic
//! is counted, and a test that does not expect it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, ensure};
use millrace_cluster_tests::condition::eventually;
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::node::{Fault, PANIC};
use serde_json::Value;

const MIB: usize = 1 << 20;

const SOUND: usize = 0;
const PANICKING: usize = 1;

const PANICS: &str = "millrace_telemetry_panics_total";

/// Starts two nodes, and pulls a blob whose home panics when it is asked for it through the other.
async fn pulled_past_a_panic(variables: &[(&'static str, &'static str)]) -> Result<Scene> {
    let variables = variables.to_vec();
    let plan = Fleet::of(2).each(move |index, node| match index {
        PANICKING => variables.iter().fold(
            node.fault(Fault::Panic).set("log/formatter", "json"),
            |node, (name, value)| node.environment(name, value),
        ),
        _ => node,
    });
    let scene = Scene::start(plan).await?;
    let (_, content) = scene.fleet.content_of_home(PANICKING, MIB);
    let path = scene.add(&content);
    for node in [SOUND, PANICKING] {
        scene.pull(node, &path, &content).await?;
    }
    Ok(scene)
}

/// Returns what the panicking node has logged about panics; every line that it printed is JSON.
fn told(scene: &Scene) -> Result<Vec<Value>> {
    let log = scene.fleet.node(PANICKING).log();
    let lines = log.lines().map(|line| {
        serde_json::from_str::<Value>(line).with_context(|| format!("a line of the log: {line}"))
    });
    let mut lines = lines.collect::<Result<Vec<_>>>()?;
    lines.retain(|line| line["message"] == "a thread has panicked");
    Ok(lines)
}

/// Demands that the panicking node has logged and counted the same number of panics, one or more.
async fn logged_and_counted(scene: &Scene) -> Result<Vec<Value>> {
    // It is counted first: where from a panic came may take seconds to find.
    let counted = scene.fleet.node(PANICKING).metric(PANICS, &[]).await?;
    ensure!(counted.is_some_and(|counted| counted > 0.0), "{counted:?}");
    eventually("as many are logged as are counted", async || {
        told(scene).is_ok_and(|told| Some(told.len() as f64) == counted)
    })
    .await;
    let told = told(scene)?;
    for line in &told {
        assert_eq!(line["level"], "ERROR", "{line}");
        assert_eq!(line["panic.message"], PANIC, "{line}");
        let location = line["panic.location"].as_str().unwrap_or_default();
        assert!(location.contains("faulty.rs:"), "{line}");
        assert!(line["thread.name"].is_string(), "{line}");
    }
    Ok(told)
}

#[tokio::test]
async fn a_panic_is_a_line_of_the_log_and_counted_and_fails_no_pull() -> Result<()> {
    let mut scene = pulled_past_a_panic(&[("RUST_BACKTRACE", "0")]).await?;
    scene.fleet.node_mut(PANICKING).expect_panics();
    for line in logged_and_counted(&scene).await? {
        assert!(line["panic.backtrace"].is_null(), "{line}");
    }
    let sound = scene.fleet.node(SOUND).metric(PANICS, &[]).await?;
    assert_eq!(sound, Some(0.0), "nothing has panicked there");
    Ok(())
}

#[tokio::test]
async fn a_panic_tells_where_from_it_came_if_that_is_asked_for() -> Result<()> {
    let mut scene = pulled_past_a_panic(&[("RUST_BACKTRACE", "1")]).await?;
    scene.fleet.node_mut(PANICKING).expect_panics();
    for line in logged_and_counted(&scene).await? {
        let backtrace = line["panic.backtrace"].as_str().unwrap_or_default();
        assert!(backtrace.contains("faulty"), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_panic_is_told_where_the_log_lets_no_error_through() -> Result<()> {
    let mut scene = pulled_past_a_panic(&[("MILLRACE_LOG_LEVEL", "off")]).await?;
    scene.fleet.node_mut(PANICKING).expect_panics();
    let log = scene.fleet.node(PANICKING).log();
    ensure!(log.contains(PANIC), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_test_that_does_not_expect_a_panic_fails() -> Result<()> {
    let scene = pulled_past_a_panic(&[]).await?;
    let ended = catch_unwind(AssertUnwindSafe(|| drop(scene.fleet)));
    ensure!(ended.is_err(), "it went unnoticed");
    Ok(())
}
