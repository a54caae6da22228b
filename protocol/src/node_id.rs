//! Names of nodes: the public half of the ed25519 key that a node makes at its first start.
//!
//! The same key is the node's identity on the control plane and on the data plane, so a name
//! cannot be claimed by anybody else. Making and keeping keys is the cluster room's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of an ed25519 public key.
pub const NODE_ID_BYTES: usize = 32;

/// Hexadecimal digits of the short form, enough to tell the nodes of one cluster apart.
const SHORT_DIGITS: usize = 12;

/// A node's name; ordered as its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId([u8; NODE_ID_BYTES]);

impl NodeId {
    /// Names the node that holds the secret half of this public key.
    pub const fn new(public_key: [u8; NODE_ID_BYTES]) -> Self {
        Self(public_key)
    }

    /// Returns the public key.
    pub const fn as_bytes(&self) -> &[u8; NODE_ID_BYTES] {
        &self.0
    }

    /// Returns the first digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..SHORT_DIGITS / 2])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    /// Parses the 64 hexadecimal digits that `Display` prints.
    ///
    /// # Errors
    /// [`InvalidNodeId`] for anything else.
    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let mut bytes = [0; NODE_ID_BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidNodeId)?;
        Ok(Self(bytes))
    }
}

/// A text is not the name of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node id, expected 64 hexadecimal digits")]
pub struct InvalidNodeId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        let id = NodeId::new([0xab; NODE_ID_BYTES]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "abababababab");
        assert_eq!("abc".parse::<NodeId>(), Err(InvalidNodeId));
        assert_eq!("zz".repeat(32).parse::<NodeId>(), Err(InvalidNodeId));
    }
}
