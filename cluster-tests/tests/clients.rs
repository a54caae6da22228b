//! Real clients pull through a node: cold, warm, and with the upstream stopped.
//!
//! Every pull is compared with the original digest by digest, and the upstream's own log says
//! what reached it. Images are pulled as `docker.io/library/…`, the one name for which every
//! client can be given a mirror.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use millrace_cluster_tests::client::{Buildah, Client, Containerd, Dockerd, Podman, Skopeo};
use millrace_cluster_tests::image::{Image, referrers_tag};
use millrace_cluster_tests::node::Node;
use millrace_cluster_tests::upstream::Upstream;

/// The large layer: beyond every buffer, and minutes away from a time-out.
const LARGE_BYTES: u64 = 256 * 1024 * 1024;

/// A node in front of a registry that plays docker.io.
struct Scene {
    upstream: Upstream,
    node: Node,
    images: BTreeMap<String, Image>,
}

impl Scene {
    async fn start() -> Result<Self> {
        let upstream = Upstream::start().await?;
        let node = Node::builder()
            .upstream("docker.io", &upstream.url())
            .start()
            .await?;
        Ok(Self {
            upstream,
            node,
            images: BTreeMap::new(),
        })
    }

    /// A scene with the images that are small: one that runs, one of 40 layers, an index.
    async fn with_small_images() -> Result<Self> {
        let mut scene = Self::start().await?;
        scene.push("runs", Image::runnable("clients")?).await?;
        scene.push("layers", Image::of_layers(40)?).await?;
        scene
            .push("platforms", Image::of_two_platforms("clients")?)
            .await?;
        Ok(scene)
    }

    async fn with_large_image() -> Result<Self> {
        let mut scene = Self::start().await?;
        scene.push("large", Image::of_size(LARGE_BYTES, 1)?).await?;
        Ok(scene)
    }

    async fn push(&mut self, name: &str, image: Image) -> Result<()> {
        self.upstream
            .push(&image, &format!("library/{name}"), "1")
            .await?;
        self.images
            .insert(format!("docker.io/library/{name}:1"), image);
        Ok(())
    }

    /// Where clients of the podman family find docker.io: the mirror's name carries the path.
    fn with_path(&self) -> String {
        format!("{}/docker.io", self.node.address())
    }

    /// Where dockerd and containerd find docker.io.
    fn plain(&self) -> String {
        self.node.address().to_string()
    }

    /// Pulls every image and compares it.
    async fn pull_all(&self, client: &impl Client) -> Result<()> {
        for (reference, image) in &self.images {
            client.pull(reference).await?;
            client
                .compare(reference, image)
                .await
                .with_context(|| reference.clone())?;
        }
        Ok(())
    }

    /// Tells of every blob how often its body left the upstream.
    async fn blob_bodies(&self) -> Result<BTreeMap<String, usize>> {
        let mut bodies = BTreeMap::new();
        let accesses = self.upstream.content_accesses().await?;
        for access in accesses
            .into_iter()
            .filter(|access| access.path.contains("/blobs/") && access.status == 200)
        {
            *bodies.entry(access.path).or_default() += 1;
        }
        Ok(bodies)
    }

    /// The story of every client.
    async fn pulls_cold_warm_and_offline(&mut self, client: &impl Client) -> Result<()> {
        self.pull_all(client).await.context("cold")?;
        let bodies = self.blob_bodies().await?;
        ensure!(
            !bodies.is_empty(),
            "the cold pull did not reach the upstream"
        );
        ensure!(
            bodies.values().all(|count| *count == 1),
            "blobs left the upstream more than once: {bodies:#?}"
        );
        client.forget().await?;

        let before = self.upstream.content_accesses().await?;
        self.pull_all(client).await.context("warm")?;
        let after = self.upstream.content_accesses().await?;
        ensure!(
            after.len() == before.len(),
            "the warm pull reached the upstream: {:#?}",
            &after[before.len()..]
        );
        client.forget().await?;

        self.upstream.stop();
        self.pull_all(client)
            .await
            .context("with the upstream stopped")
    }
}

#[tokio::test]
async fn skopeo_pulls_cold_warm_and_offline() -> Result<()> {
    let mut scene = Scene::with_small_images().await?;
    let skopeo = Skopeo::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&skopeo).await
}

#[tokio::test]
async fn skopeo_pulls_an_artifact_and_what_refers_to_an_image() -> Result<()> {
    let mut scene = Scene::start().await?;
    let image = Image::runnable("subject")?;
    let artifact = Image::artifact("application/example.sbom", image.root(), b"what is inside")?;
    // Under the tag of the subject's digest the same is listed for clients that look for referrers.
    let referrers = Image::referrers_index(&artifact, "application/example.sbom")?;
    let tag = referrers_tag(&image.root().digest);
    scene.push("app", image).await?;
    let repository = "library/app";
    scene.upstream.push(&artifact, repository, "sbom").await?;
    scene
        .upstream
        .put_root(&referrers, repository, &tag)
        .await?;
    let skopeo = Skopeo::through(&scene.with_path())?;
    let name = |tag: &str| format!("docker.io/{repository}:{tag}");
    scene.images.insert(name("sbom"), artifact);
    for upstream_is_there in [true, false] {
        // skopeo copies no index of artifacts unchanged, so it only looks at this one.
        let listed = skopeo.raw(&name(&tag)).await?;
        let expected = referrers.read(&referrers.root().digest)?;
        ensure!(listed.trim().as_bytes() == expected, "{listed}");
        scene.pull_all(&skopeo).await?;
        skopeo.forget().await?;
        if upstream_is_there {
            scene.upstream.stop();
        }
    }
    Ok(())
}

#[tokio::test]
async fn skopeo_pulls_a_large_layer() -> Result<()> {
    let mut scene = Scene::with_large_image().await?;
    let skopeo = Skopeo::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&skopeo).await
}

#[tokio::test]
async fn podman_pulls_cold_warm_and_offline_and_runs_the_image() -> Result<()> {
    let mut scene = Scene::with_small_images().await?;
    let podman = Podman::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&podman).await?;
    let printed = podman
        .execute("docker.io/library/runs:1", &["cat", "/mark"])
        .await?;
    ensure!(printed == "clients", "the container printed {printed:?}");
    Ok(())
}

#[tokio::test]
async fn podman_pulls_a_large_layer() -> Result<()> {
    let mut scene = Scene::with_large_image().await?;
    let podman = Podman::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&podman).await
}

#[tokio::test]
async fn buildah_pulls_cold_warm_and_offline_and_runs_the_image() -> Result<()> {
    let mut scene = Scene::with_small_images().await?;
    let buildah = Buildah::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&buildah).await?;
    let printed = buildah
        .execute("docker.io/library/runs:1", &["cat", "/mark"])
        .await?;
    ensure!(printed == "clients", "the container printed {printed:?}");
    Ok(())
}

#[tokio::test]
async fn buildah_pulls_a_large_layer() -> Result<()> {
    let mut scene = Scene::with_large_image().await?;
    let buildah = Buildah::through(&scene.with_path())?;
    scene.pulls_cold_warm_and_offline(&buildah).await
}

#[tokio::test]
async fn containerd_pulls_cold_warm_and_offline_and_runs_the_image() -> Result<()> {
    let mut scene = Scene::with_small_images().await?;
    let containerd = Containerd::start_through(&scene.plain()).await?;
    scene.pulls_cold_warm_and_offline(&containerd).await?;
    let printed = containerd
        .execute("docker.io/library/runs:1", &["cat", "/mark"])
        .await?;
    ensure!(printed == "clients", "the container printed {printed:?}");
    Ok(())
}

#[tokio::test]
async fn containerd_pulls_a_large_layer() -> Result<()> {
    let mut scene = Scene::with_large_image().await?;
    let containerd = Containerd::start_through(&scene.plain()).await?;
    scene.pulls_cold_warm_and_offline(&containerd).await
}

#[tokio::test]
async fn containerd_names_an_upstream_with_a_port() -> Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::runnable("a registry with a port")?;
    upstream.push(&image, "team/app", "1").await?;
    let node = Node::builder()
        .upstream("registry.corp:5000", &upstream.url())
        .start()
        .await?;
    let containerd = Containerd::start().await?;
    containerd.add_mirror("registry.corp:5000", &node.address().to_string())?;
    let reference = "registry.corp:5000/team/app:1";
    containerd.pull(reference).await?;
    containerd.compare(reference, &image).await
}

#[tokio::test]
async fn dockerd_pulls_cold_warm_and_offline_and_runs_the_image() -> Result<()> {
    let mut scene = Scene::with_small_images().await?;
    let dockerd = Dockerd::start_through(&scene.plain()).await?;
    scene.pulls_cold_warm_and_offline(&dockerd).await?;
    let printed = dockerd
        .execute("docker.io/library/runs:1", &["cat", "/mark"])
        .await?;
    ensure!(printed == "clients", "the container printed {printed:?}");
    Ok(())
}

#[tokio::test]
async fn dockerd_pulls_a_large_layer() -> Result<()> {
    let mut scene = Scene::with_large_image().await?;
    let dockerd = Dockerd::start_through(&scene.plain()).await?;
    scene.pulls_cold_warm_and_offline(&dockerd).await
}

#[tokio::test]
async fn clients_at_the_same_time_cost_one_upstream_pull() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene.push("large", Image::of_size(LARGE_BYTES, 7)?).await?;
    scene.push("layers", Image::of_layers(40)?).await?;
    let mirror = scene.with_path();
    let clients = [
        Skopeo::through(&mirror)?,
        Skopeo::through(&mirror)?,
        Skopeo::through(&mirror)?,
    ];
    let pulls = clients.iter().map(|client| scene.pull_all(client));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled?;
    }
    let bodies = scene.blob_bodies().await?;
    ensure!(
        bodies.len() == 43,
        "41 blobs of one image and 2 of the other: {bodies:#?}"
    );
    ensure!(
        bodies.values().all(|count| *count == 1),
        "blobs left the upstream more than once: {bodies:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn dockerd_builds_with_buildkit_cold_warm_and_offline() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene
        .push("runs", Image::runnable("base of a build")?)
        .await?;
    let dockerfile = "FROM runs:1\nRUN cat /mark > /copy\n";
    build_on_a_new_host(&scene, dockerfile)
        .await
        .context("cold")?;
    let bodies = scene.blob_bodies().await?;
    ensure!(
        bodies.len() == 2 && bodies.values().all(|count| *count == 1),
        "a configuration and a layer leave the upstream once: {bodies:#?}"
    );
    let before = scene.upstream.content_accesses().await?.len();
    build_on_a_new_host(&scene, dockerfile)
        .await
        .context("warm")?;
    let after = scene.upstream.content_accesses().await?;
    ensure!(
        after.len() == before,
        "the warm build reached the upstream: {:#?}",
        &after[before..]
    );
    scene.upstream.stop();
    let offline = build_on_a_new_host(&scene, dockerfile).await;
    offline.context("with the upstream stopped")
}

/// Builds an image with BuildKit on a host that has nothing yet, and runs it.
async fn build_on_a_new_host(scene: &Scene, dockerfile: &str) -> Result<()> {
    let dockerd = Dockerd::start_through(&scene.plain()).await?;
    dockerd.build(dockerfile, "built:1").await?;
    let printed = dockerd.execute("built:1", &["cat", "/copy"]).await?;
    ensure!(
        printed == "base of a build",
        "the container printed {printed:?}"
    );
    Ok(())
}
