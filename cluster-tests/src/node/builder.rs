//! What a node is started with: settings, environment, the host it runs on, and free ports.
//!
//! The configuration has nothing but what a test sets, and what no node can start without.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{Fault, Node};
use crate::netns::Host;
use crate::port::free_address;

/// Starts with other ports, when somebody took one between choosing and binding.
const START_ATTEMPTS: usize = 5;

/// Where a node on a host of its own answers clients.
pub(crate) const HOST_PORT: u16 = 5000;

/// Where a node on a host of its own shows metrics and status.
const HOST_DEBUG_PORT: u16 = 5001;

/// What a node is started with; [`Node::builder`] yields one.
#[derive(Clone, Debug, Default)]
pub struct NodeBuilder {
    pub(super) settings: Map<String, Value>,
    pub(super) environment: Vec<(String, String)>,
    /// Where clients are answered, unless at loopback.
    pub(super) at: Option<IpAddr>,
    /// The host that the node runs on, unless this one.
    pub(super) host: Option<Host>,
    /// Who is asked for names, unless whom this machine asks.
    pub(super) name_server: Option<Ipv4Addr>,
    /// What is wrong with its answers to other nodes.
    pub(super) fault: Option<Fault>,
    /// Whether what it does to its files is recorded.
    pub(super) traced: bool,
}

impl NodeBuilder {
    /// Answers clients at this address of the machine.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        self.at = Some(address);
        self
    }

    /// Sets `path` (keys joined by `/`, because names of registries contain dots) to `value`.
    ///
    /// # Panics
    /// When a key on the way holds something that is not a section.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let (section, key) = self.section(path);
        section.insert(key.to_owned(), value.into());
        self
    }

    /// Takes back what was set at `path`.
    ///
    /// # Panics
    /// As [`NodeBuilder::set`].
    #[must_use]
    pub fn unset(mut self, path: &str) -> Self {
        let (section, key) = self.section(path);
        section.remove(key);
        self
    }

    /// Finds the section and the key in it that `path` names.
    fn section<'a>(&mut self, path: &'a str) -> (&mut Map<String, Value>, &'a str) {
        let mut keys: Vec<&str> = path.split('/').collect();
        let last = keys.pop().expect("split yields at least one part");
        let mut section = &mut self.settings;
        for key in keys {
            let entry = section.entry(key).or_insert_with(|| json!({}));
            section = entry
                .as_object_mut()
                .expect("a section of the configuration");
        }
        (section, last)
    }

    /// Configures the upstream `name` at `url`.
    #[must_use]
    pub fn upstream(self, name: &str, url: &str) -> Self {
        self.set(&format!("upstreams/{name}/url"), url)
    }

    /// Sets an environment variable of the process.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the node on a host of its own, where it answers at the host's door.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// Lets the node ask this name server, and no other; needs root.
    #[must_use]
    pub fn name_server(mut self, address: Ipv4Addr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Starts a node whose answers to other nodes are wrong.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Records what the node does to its files; needs strace.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// Chooses where clients are answered, and where metrics and status are.
    pub(super) fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        if let Some(host) = &self.host {
            // Nobody else is on that host.
            return Ok((
                (host.door(), HOST_PORT).into(),
                (host.door(), HOST_DEBUG_PORT).into(),
            ));
        }
        let mut address = free_address()?;
        if let Some(at) = self.at {
            address.set_ip(at);
        }
        Ok((address, free_address()?))
    }

    /// Starts the node and waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the program is missing, ends at once, or is not ready within the patience.
    pub async fn start(self) -> Result<Node> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-node-")
            .tempdir()?;
        for _ in 1..START_ATTEMPTS {
            let mut node = Node::prepare(&self, &folder)?;
            match node.launch().await {
                Ok(()) => return Ok(node.keep(folder)),
                Err(error) if node.log().to_lowercase().contains("address already in use") => {
                    drop(error)
                }
                Err(error) => return Err(error),
            }
        }
        let mut node = Node::prepare(&self, &folder)?;
        node.launch().await?;
        Ok(node.keep(folder))
    }

    /// Starts the node and waits only until it tells its state: it may not yet have met the others.
    ///
    /// # Errors
    /// When the program is missing, ends at once, or tells nothing within the patience.
    pub async fn launch(self) -> Result<Node> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-node-")
            .tempdir()?;
        let mut node = Node::prepare(&self, &folder)?;
        node.relaunch().await?;
        Ok(node.keep(folder))
    }

    /// The whole configuration. JSON is YAML, so it is written as it stands.
    pub(super) fn configuration(
        &self,
        address: SocketAddr,
        debug: SocketAddr,
        data: &Path,
    ) -> Value {
        self.clone()
            .set("version", 0.1)
            .set("http/addr", address.to_string())
            .set("http/debug/addr", debug.to_string())
            .set(
                "storage/filesystem/rootdirectory",
                data.display().to_string(),
            )
            .settings
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_nested_by_slashes() {
        let builder = Node::builder()
            .upstream("docker.io", "http://127.0.0.1:1")
            .set("cache/max_size", "1GB");
        let expected = json!({
            "upstreams": {"docker.io": {"url": "http://127.0.0.1:1"}},
            "cache": {"max_size": "1GB"},
        });
        assert_eq!(Value::from(builder.settings), expected);
    }
}
