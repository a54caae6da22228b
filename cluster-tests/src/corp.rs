//! A node in front of a real registry, under the name and with the repository that tests use.
//!
//! What the registry does is [`crate::upstream`]'s; a registry that misbehaves is [`crate::fake`].

use crate::node::{Node, NodeBuilder};
use crate::repository::Repository;
use crate::upstream::Upstream;

/// The name of the upstream.
pub const UPSTREAM: &str = "corp";

/// Its repository.
pub const REPOSITORY: &str = "team/app";

/// Returns a node in front of `upstream`, to be set up further and started.
pub fn node_before(upstream: &Upstream) -> NodeBuilder {
    Node::builder().upstream(UPSTREAM, &upstream.url())
}

/// Returns the repository as a client sees it through `node`.
pub fn repository(node: &Node) -> Repository {
    Repository::at(node.address(), &format!("{UPSTREAM}/{REPOSITORY}"))
}
