//! Why a peer did not give what it was asked for.

use std::io;
use std::net::SocketAddr;

use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::frame::{FrameError, VERSION};
use millrace_protocol::wire::message::Refusal;
use quinn::ConnectionError;

use super::outbox::Code;

/// A question to a peer came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The node is no member of the cluster, or is this node itself.
    #[error("node {peer} is no peer")]
    NoMember {
        /// Who was to be asked.
        peer: NodeId,
    },
    /// No connection can be made; the peer is left alone for a while.
    #[error("peer {peer} cannot be reached")]
    Unreachable {
        /// Who was to be asked.
        peer: NodeId,
        /// What the last attempt came to.
        source: DialError,
    },
    /// The peer has said nothing for too long.
    #[error("peer {peer} is silent")]
    Silent {
        /// Who was asked.
        peer: NodeId,
    },
    /// This node asks the peer as much at a time as that lets it: nothing is known of the peer.
    #[error("peer {peer} is asked as much as it allows")]
    Crowded {
        /// Who was to be asked.
        peer: NodeId,
    },
    /// The peer lives, and does not get on with its answer.
    #[error("peer {peer} does not get on with its answer")]
    Stuck {
        /// Who was asked.
        peer: NodeId,
    },
    /// The connection ended.
    #[error("connection to peer {peer} is lost")]
    Lost {
        /// Who was asked.
        peer: NodeId,
        /// Why.
        source: ConnectionError,
    },
    /// The peer refuses, and says why.
    #[error("peer {peer} refuses: {refusal:?}")]
    Refused {
        /// Who was asked.
        peer: NodeId,
        /// Its reason.
        refusal: Refusal,
    },
    /// The peer ended the stream before its answer was complete.
    #[error("peer {peer} broke off its answer with code {code}")]
    BrokenOff {
        /// Who was asked.
        peer: NodeId,
        /// One of SPEC.md "Codes"; 0 when the stream just ended.
        code: u64,
    },
    /// What the peer sent is no frame, or another version's.
    #[error("peer {peer} sent a bad frame")]
    Frame {
        /// Who was asked.
        peer: NodeId,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The peer sent something that is no answer to the question, or not at this point.
    #[error("peer {peer} sent {what}")]
    Disordered {
        /// Who was asked.
        peer: NodeId,
        /// What it sent.
        what: &'static str,
    },
    /// The question breaks a bound of the protocol, so it was not asked.
    #[error("question cannot be asked")]
    Question {
        /// Which bound.
        source: FrameError,
    },
}

impl PeerError {
    /// Returns the reason that the peer gave, if it gave one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// Whether the peer lives and its answer is of no use: the question has come to it in time, and this
    /// node has taken in what was sent.
    pub fn is_broken_answer(&self) -> bool {
        let is_of_the_line = |code: u64| {
            [Code::Late, Code::Stalled]
                .map(|own| own.number().into_inner())
                .contains(&code)
        };
        match self {
            Self::BrokenOff { code, .. } => !is_of_the_line(*code),
            Self::Stuck { .. }
            | Self::Refused { .. }
            | Self::Frame { .. }
            | Self::Disordered { .. } => true,
            _ => false,
        }
    }

    /// Whether the peer broke the protocol, so that it is better not asked again for the same.
    pub fn is_misbehaviour(&self) -> bool {
        matches!(self, Self::Frame { .. } | Self::Disordered { .. })
    }
}

/// Why no connection to a peer came about; cheap to clone, everybody who waits gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// The member announces no address.
    #[error("it announces no address")]
    NoAddress,
    /// The member speaks another version of the peer protocol; it is not dialled.
    #[error("it speaks version {theirs} of the peer protocol, this node speaks {VERSION}")]
    Version {
        /// The version that it announces.
        theirs: u8,
    },
    /// Nothing came back in time: the node is gone, or UDP to it is blocked.
    #[error("no answer over UDP in time")]
    TimedOut,
    /// Somebody answers, but the connection is refused by one of the two sides.
    #[error("connection refused: {0}")]
    Refused(#[source] ConnectionError),
    /// Nothing can be sent to this address.
    #[error("cannot connect to {address}: {reason}")]
    Address {
        /// The member's address.
        address: SocketAddr,
        /// Why not.
        reason: quinn::ConnectError,
    },
    /// This node stops.
    #[error("this node stops")]
    Stopping,
}

/// The exchange with peers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("cannot listen on UDP {address}")]
    Socket {
        /// `cluster.listen`.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The node's key cannot be used for TLS.
    #[error("identity cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    /// The TLS library lacks what QUIC needs.
    #[error("no cipher suite for QUIC")]
    Suite(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_broke_off_because_of_the_line_has_given_no_broken_answer() {
        let broken_off = |code: Code| PeerError::BrokenOff {
            peer: NodeId::new([1; 32]),
            code: code.number().into_inner(),
        };
        for code in [Code::Late, Code::Stalled] {
            assert!(!broken_off(code).is_broken_answer(), "{code:?}");
        }
        for code in [Code::Cancelled, Code::Malformed, Code::Stuck] {
            assert!(broken_off(code).is_broken_answer(), "{code:?}");
        }
    }
}
