//! A power failure takes what was not flushed, and may keep a later change without an earlier one. So
//! what a name promises is flushed before the name is there, and the name before anybody counts on it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use millrace_cluster_tests::fake::{Gate, Scene, Then, When, noise};
use millrace_cluster_tests::node::NodeBuilder;
use millrace_cluster_tests::trace::{Act, Timed, Trace};

const MIB: usize = 1 << 20;

/// The last moment.
const END: usize = usize::MAX;

/// Lets a node keep an image, then part of a blob, and returns what it did to its files.
async fn recorded() -> Result<Trace> {
    let traced = |node: NodeBuilder| node.traced().set("http/draintimeout", "3s");
    let mut scene = Scene::with(traced).await?;
    let layers = [noise(1, 3 * MIB), noise(2, 1_000)];
    let image = scene.fake.add_image("team/app", "1", &layers);
    scene.pull("team/app", "1", &image).await?;
    scene.settle().await;
    let digest = scene.fake.add_blob("app", noise(3, 3 * MIB));
    let stalled = Then::healthy().stall(2 * MIB as u64, &Gate::default());
    scene.fake.on(When::get(&digest.to_string()), stalled);
    let mut client = scene.open(scene.blob("app", &digest)).await?;
    client.read_at_least(MIB).await?;
    drop(client);
    scene.node.stop().await?;
    scene.node.trace()
}

/// Returns the renames to names that are wanted, with the new name.
fn renames(trace: &Trace, is_wanted: impl Fn(&Path) -> bool) -> Vec<(&Timed, &Path, &Path)> {
    let renames = trace.of(|act| match act {
        Act::Rename(from, to) => is_wanted(to).then_some((from, to)),
        _ => None,
    });
    renames
        .map(|(timed, (from, to))| (timed, from.as_path(), to.as_path()))
        .collect()
}

fn is_sidecar(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "json")
}

/// Whether a path lies below the folder of this name in the store.
fn is_below(path: &Path, folder: &str) -> bool {
    path.ancestors()
        .skip(1)
        .any(|above| above.ends_with(folder))
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent().context("a file lies in a folder")
}

/// Demands that a rename puts flushed content in place, and survives.
fn is_durable(trace: &Trace, (timed, from, to): (&Timed, &Path, &Path)) -> Result<()> {
    ensure!(
        trace.is_flushed(from, timed.began),
        "{} was not flushed before it became {}",
        from.display(),
        to.display()
    );
    ensure!(
        trace.is_flushed_between(parent(to)?, timed.ended, END),
        "the folder was not flushed behind {}",
        to.display()
    );
    Ok(())
}

/// Demands that a folder, if it was made, is there for good at a moment.
fn is_made(trace: &Trace, folder: &Path, until: usize) -> Result<()> {
    for (made, ()) in trace.of(|act| (*act == Act::Make(folder.to_owned())).then_some(())) {
        ensure!(
            trace.is_flushed_between(parent(folder)?, made.ended, until),
            "{} was not flushed when content came into it",
            folder.display()
        );
    }
    Ok(())
}

#[tokio::test]
async fn content_is_flushed_before_its_name_is_there_and_so_is_what_it_was_fetched_as() -> Result<()>
{
    let trace = recorded().await?;
    let is_content = |path: &Path| is_below(path, "blobs") && !is_sidecar(path);
    let contents = renames(&trace, is_content);
    // Manifest, configuration and two layers.
    ensure!(contents.len() == 4, "{contents:?}");
    for content in contents {
        is_durable(&trace, content)?;
        let (timed, _, to) = content;
        let beside = to.with_extension("json");
        let sidecars = renames(&trace, |path| path == beside);
        let is_there = |(sidecar, _, _): &(&Timed, &Path, &Path)| {
            let folder = to.parent().expect("it lies in a folder");
            trace.is_flushed_between(folder, sidecar.ended, timed.began)
        };
        ensure!(
            sidecars.iter().any(is_there),
            "{} was there before its sidecar was flushed",
            to.display()
        );
        let fan = parent(to)?;
        is_made(&trace, fan, timed.began)?;
        is_made(&trace, parent(fan)?, timed.began)?;
    }
    Ok(())
}

#[tokio::test]
async fn small_files_are_replaced_by_flushed_ones() -> Result<()> {
    let trace = recorded().await?;
    let small = renames(&trace, |path| is_sidecar(path) && !is_below(path, "index"));
    // At least the sidecars of four contents, the bounds of the store, and a part's ranges.
    ensure!(small.len() >= 6, "{small:?}");
    for file in small {
        is_durable(&trace, file)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_part_is_flushed_before_it_is_said_what_it_has() -> Result<()> {
    let trace = recorded().await?;
    let states = renames(&trace, |path| is_below(path, "parts"));
    ensure!(states.len() == 1, "{states:?}");
    let (timed, _, to) = states[0];
    let part: PathBuf = to.with_extension("");
    let is_written = |act: &Act| (*act == Act::Write(part.clone())).then_some(());
    ensure!(trace.of(is_written).next().is_some(), "nothing was written");
    ensure!(trace.is_flushed(&part, timed.began), "{trace:?}");
    Ok(())
}
