//! What the exchange with peers can be told.
//!
//! Nothing here has a key in the configuration file: the address is the cluster's, the rest are
//! bounds that belong together and that tests shorten.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

/// Bounds and patience of the exchange with peers.
#[derive(Clone, Debug)]
pub struct Config {
    /// UDP address to listen on: `cluster.listen`. Default: any port of any address.
    pub listen: SocketAddr,
    /// Chunk requests that are served at a time; who comes then is told to ask others. Too few
    /// leave the link idle, too many let everybody wait for everybody. Default 32.
    pub uploads: NonZeroU16,
    /// How long a connection may take to come about. quinn does not hear of closed ports, so a
    /// dead peer costs all of it once. Default 1 s.
    pub connect_patience: Duration,
    /// How long one address of a peer is tried before the next is tried as well. Shorter, two that
    /// answer alike make two connections, of which the peer may keep the one that is given up;
    /// longer, one that is blocked costs all of it. Default 250 ms, as in RFC 8305.
    pub dial_interval: Duration,
    /// How long a peer may say nothing while it is asked something. Default 3 s: it says
    /// *pending* every second, and two of these may be lost.
    pub silence: Duration,
    /// How often a peer that waits for an answer is told that it is being worked on. Default 1 s,
    /// as SPEC.md says.
    pub pending: Duration,
    /// How long this node may work on its first answer to a blob, manifest or tag without waiting for
    /// anybody else, before the peer is told that nothing comes of it. Shorter, a busy disk sends
    /// peers away; longer, a hung one makes their clients wait. Default 8 s.
    pub own_work: Duration,
    /// How long a peer may take to send its question. Default 5 s.
    pub question_patience: Duration,
    /// How long a peer may take in nothing of what is sent to it before the stream is given up,
    /// so that it cannot keep an upload slot. Default 10 s.
    pub stall: Duration,
    /// How long a peer is left alone after the first failed connect; doubles up to 30 s. Default
    /// 1 s.
    pub back_off: Duration,
}

/// Longest time between two attempts to connect to a peer.
pub(super) const MAX_BACK_OFF: Duration = Duration::from_secs(30);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            uploads: const { NonZeroU16::new(32).expect("not zero") },
            connect_patience: Duration::from_secs(1),
            dial_interval: Duration::from_millis(250),
            silence: Duration::from_secs(3),
            pending: Duration::from_secs(1),
            own_work: Duration::from_secs(8),
            question_patience: Duration::from_secs(5),
            stall: Duration::from_secs(10),
            back_off: Duration::from_secs(1),
        }
    }
}
