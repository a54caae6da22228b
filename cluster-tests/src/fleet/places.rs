//! Who is home or owner of what in a fleet, and content that lies where a test wants it.
//!
//! Computed with the protocol's own placement from who runs; what nodes believe is `seen`'s.

use bytes::Bytes;
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::{Algorithm, Digest};
use millrace_protocol::placement::{Key, Placement, Seat};

use super::{Fleet, scene};
use crate::fake::noise;

/// Contents that are tried until one lies where a test wants it; with 30 nodes one of them is at a
/// given home with a probability of less than 10^-14 not found.
const MOST_SEEDS: u64 = 1000;

impl Fleet {
    /// Returns the placement that everybody computes while `nodes` are the members.
    pub fn placement(&self, nodes: &[usize]) -> Placement {
        Placement::new(nodes.iter().map(|index| Seat {
            id: self.ids[*index],
            zone: self.zones[*index].clone(),
            weight: self.weights[*index],
        }))
    }

    /// Returns the home of `digest` while all running nodes are members.
    ///
    /// # Panics
    /// When nobody owns anything.
    pub fn home(&self, digest: &Digest) -> usize {
        self.walk(digest)[0]
    }

    /// Returns the first nodes of the walk of `digest`, home first, over all running nodes.
    pub fn walk(&self, digest: &Digest) -> Vec<usize> {
        let placement = self.placement(&self.running());
        let walk = placement.walk(Key::of_digest(digest));
        walk.map(|id| self.index(id)).collect()
    }

    /// Returns a tag of a repository of the upstream `fake` that begins with `name` and whose home is
    /// `home`, while all running nodes are members.
    ///
    /// # Panics
    /// When the node owns nothing.
    pub fn tag_of_home(&self, home: usize, repository: &str, name: &str) -> String {
        let placement = self.placement(&self.running());
        let mut tags = (0..MOST_SEEDS).map(|number| format!("{name}-{number}"));
        let is_wanted = |tag: &String| home_of_tag(&placement, repository, tag) == self.id(home);
        tags.find(is_wanted)
            .expect("one of many tags has its home there")
    }

    /// Returns the home of a tag of a repository of the upstream `fake` while all running nodes are
    /// members.
    ///
    /// # Panics
    /// When nobody owns anything.
    pub fn home_of_tag(&self, repository: &str, tag: &str) -> usize {
        self.index(home_of_tag(
            &self.placement(&self.running()),
            repository,
            tag,
        ))
    }

    /// Returns the owners of `digest` in `zone`, first the one that is asked first.
    pub fn owners(&self, zone: &str, digest: &Digest) -> Vec<usize> {
        let placement = self.placement(&self.running());
        let owners = placement.owners(zone, Key::of_digest(digest));
        owners.map(|id| self.index(id)).collect()
    }

    /// Makes content of `size` bytes whose home is `home`, while all running nodes are members.
    ///
    /// # Panics
    /// When the node owns nothing.
    pub fn content_of_home(&self, home: usize, size: usize) -> (Digest, Bytes) {
        self.content_where(size, |walk| walk[0] == home)
    }

    /// Makes content of `size` bytes whose walk over all running nodes is as wanted.
    ///
    /// # Panics
    /// When there is no such content among many.
    pub fn content_where(
        &self,
        size: usize,
        is_wanted: impl Fn(&[usize]) -> bool,
    ) -> (Digest, Bytes) {
        let placement = self.placement(&self.running());
        for seed in 0..MOST_SEEDS {
            let content = noise(seed, size);
            let digest = Digest::of(Algorithm::Sha256, &content);
            let walk = placement.walk(Key::of_digest(&digest));
            let walk: Vec<usize> = walk.map(|id| self.index(id)).collect();
            if is_wanted(&walk) {
                return (digest, content);
            }
        }
        panic!("no content of {MOST_SEEDS} lies where the test wants it");
    }
}

fn home_of_tag(placement: &Placement, repository: &str, tag: &str) -> NodeId {
    let (repository, tag) = (repository.parse(), tag.parse());
    let (repository, tag) = (repository.expect("a name"), tag.expect("a tag"));
    let mut walk = placement.walk(Key::of_tag(scene::UPSTREAM, &repository, &tag));
    walk.next().expect("somebody owns something")
}
