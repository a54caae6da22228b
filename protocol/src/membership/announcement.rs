//! What members say of themselves and of others, and the bytes it travels in.
//!
//! Everything here comes from another node: sizes are bounded before anything is allocated, and
//! [`Announcement::check`] refuses what no healthy node says.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::node_id::NodeId;
use crate::placement::MAX_WEIGHT;

/// First byte of every message; another one is another format.
pub const FORMAT: u8 = 1;

/// Largest announcement, in bytes: with every list full it takes about half of that.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 8 * 1024;

/// Largest greeting, in bytes: 512 contacts of 8 addresses fit.
pub const MAX_GREETING_BYTES: usize = 256 * 1024;

/// Most addresses that a member has.
pub const MAX_ADDRESSES: usize = 8;

/// Most nodes that one member denies.
pub const MAX_DENIED: usize = 64;

/// Most contacts that one greeting names.
pub const MAX_CONTACTS_TOLD: usize = 512;

/// Greatest generation: a node that was started every second would reach it after a century. What is
/// greater is a mistake, and a node that took it up could never count on from there.
pub const MAX_GENERATION: u64 = u32::MAX as u64;

/// Longest name of a zone, in bytes.
const MAX_ZONE_BYTES: usize = 64;

/// Longest version of a program, in bytes.
const MAX_VERSION_BYTES: usize = 64;

/// What a member says of itself, every second and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// How often the node was started; never taken from a clock.
    pub generation: u64,
    /// Counts the announcements of this generation.
    pub sequence: u64,
    /// A random number that the process drew at its start: two nodes that share an identity
    /// differ in it.
    pub instance: u64,
    /// Whether it is on its way out.
    pub presence: Presence,
    /// Its zone; [`is_zone`].
    pub zone: String,
    /// Where it listens, best first.
    pub addresses: Vec<SocketAddr>,
    /// Its share of the ring.
    pub weight: u32,
    /// Version of its program.
    pub version: String,
    /// Version of the peer protocol that it speaks.
    pub wire_version: u8,
    /// Blobs on their way to it or from it.
    pub load: u32,
    /// Fingerprint of its placement, to see that all agree.
    pub placement: u64,
    /// Nodes that are to be kept out.
    pub denied: Vec<NodeId>,
}

/// Whether a member stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It serves.
    Here,
    /// It stops: whoever hears this asks it nothing more.
    Leaving,
}

/// Why an announcement is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAnnouncement {
    /// No node was ever started so often.
    #[error("generation over {MAX_GENERATION}")]
    Generation,
    /// The name of the zone breaks the grammar.
    #[error("invalid zone")]
    Zone,
    /// There is no address, there are too many, or one cannot be reached.
    #[error("no address that can be reached, or too many")]
    Addresses,
    /// The weight is too great.
    #[error("weight over {MAX_WEIGHT}")]
    Weight,
    /// The version is empty, too long or not printable.
    #[error("invalid version")]
    Version,
    /// Too many nodes are denied.
    #[error("over {MAX_DENIED} denied nodes")]
    Denied,
}

impl Announcement {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first [`InvalidAnnouncement`].
    pub fn check(&self) -> Result<(), InvalidAnnouncement> {
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if self.generation > MAX_GENERATION {
            return Err(InvalidAnnouncement::Generation);
        }
        if !is_zone(&self.zone) {
            return Err(InvalidAnnouncement::Zone);
        }
        if !are_addresses(&self.addresses) {
            return Err(InvalidAnnouncement::Addresses);
        }
        if self.weight > MAX_WEIGHT {
            return Err(InvalidAnnouncement::Weight);
        }
        let length = self.version.len();
        if length == 0 || length > MAX_VERSION_BYTES || !printable(&self.version) {
            return Err(InvalidAnnouncement::Version);
        }
        if self.denied.len() > MAX_DENIED {
            return Err(InvalidAnnouncement::Denied);
        }
        Ok(())
    }

    /// Whether this was said after `other`, by the same node.
    pub(super) fn is_newer_than(&self, other: (u64, u64)) -> bool {
        (self.generation, self.sequence) > other
    }
}

/// Whether `text` may name a zone: letters, digits, `.`, `_` and `-`, at most 64 of them.
pub fn is_zone(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= MAX_ZONE_BYTES && text.bytes().all(letter)
}

/// Whether a node can be reached at these: at least one, not too many, each a real one.
pub fn are_addresses(addresses: &[SocketAddr]) -> bool {
    let reachable = |address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    };
    let count = addresses.len();
    (1..=MAX_ADDRESSES).contains(&count) && addresses.iter().all(reachable)
}

/// What two nodes tell each other when a connection between them begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// What the sender says of itself.
    pub announcement: Announcement,
    /// What the sender last heard of the receiver: generation and instance.
    pub you: Option<(u64, u64)>,
    /// Whom the sender knows; at most [`MAX_CONTACTS_TOLD`].
    pub contacts: Vec<Contact>,
}

/// Where a node may be found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node.
    pub id: NodeId,
    /// Its addresses, as it last announced them.
    pub addresses: Vec<SocketAddr>,
}

/// Bytes are not a message of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message is of another format.
    #[error("format {0}, expected {FORMAT}")]
    Format(u8),
    /// The bytes are no message of this format.
    #[error("malformed message")]
    Malformed,
}

/// Writes a message: the format, then bincode.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    let body = bincode::serde::encode_to_vec(message, bincode::config::standard());
    bytes.extend(body.expect("the messages of this file have no fallible fields"));
    bytes
}

/// Reads a message that must fill `bytes`; allocates at most [`MAX_GREETING_BYTES`] for it.
///
/// # Errors
/// [`DecodeError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard().with_limit::<MAX_GREETING_BYTES>();
    match bytes.split_first() {
        Some((&FORMAT, body)) => match bincode::serde::decode_from_slice(body, config) {
            Ok((message, read)) if read == body.len() => Ok(message),
            _ => Err(DecodeError::Malformed),
        },
        Some((&format, _)) => Err(DecodeError::Format(format)),
        None => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement() -> Announcement {
        Announcement {
            generation: 3,
            sequence: 70_000,
            instance: u64::MAX,
            presence: Presence::Here,
            zone: "fra1".to_owned(),
            addresses: vec![
                "10.0.0.1:5050".parse().expect("an address"),
                "[fd00::1]:5050".parse().expect("an address"),
            ],
            weight: 1,
            version: "0.1.0".to_owned(),
            wire_version: 1,
            load: 5,
            placement: 0x0123_4567_89ab_cdef,
            denied: vec![NodeId::new([7; 32])],
        }
    }

    #[test]
    fn the_format_never_changes() {
        let expected = "0103fc70110100fdffffffffffffffff00046672613102000a000001fbba1301fd0000000000\
                        00000000000000000001fbba130105302e312e300105fdefcdab8967452301010707070707070707070707070707070707070707070707070707070707070707";
        let bytes = encode(&announcement());
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(decode(&bytes), Ok(announcement()));
    }

    #[test]
    fn another_format_and_trailing_bytes_are_refused() {
        let mut bytes = encode(&announcement());
        bytes.push(0);
        assert_eq!(decode::<Announcement>(&bytes), Err(DecodeError::Malformed));
        bytes[0] = 2;
        assert_eq!(decode::<Announcement>(&bytes), Err(DecodeError::Format(2)));
        assert_eq!(decode::<Announcement>(&[]), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_billion_addresses_are_not_allocated() {
        let mut bytes = encode(&announcement());
        // The number of addresses, behind the zone.
        let at = bytes.windows(5).position(|part| part == b"fra1\x02");
        let at = at.expect("zone and count") + 4;
        bytes.splice(at..=at, [0xfc, 0x00, 0xca, 0x9a, 0x3b]);
        assert_eq!(decode::<Announcement>(&bytes), Err(DecodeError::Malformed));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let change = |change: fn(&mut Announcement)| {
            let mut announcement = announcement();
            change(&mut announcement);
            announcement.check()
        };
        use InvalidAnnouncement::{Addresses, Denied, Generation, Version, Weight, Zone};
        assert_eq!(change(|_| ()), Ok(()));
        assert_eq!(
            change(|a| a.generation = MAX_GENERATION + 1),
            Err(Generation)
        );
        assert_eq!(change(|a| a.zone.clear()), Err(Zone));
        assert_eq!(change(|a| a.zone = "../fra".into()), Err(Zone));
        assert_eq!(change(|a| a.zone = "z".repeat(65)), Err(Zone));
        assert_eq!(change(|a| a.addresses.clear()), Err(Addresses));
        assert_eq!(change(|a| a.addresses[0].set_port(0)), Err(Addresses));
        assert_eq!(
            change(|a| a.addresses = vec![SocketAddr::from(([0, 0, 0, 0], 1))]),
            Err(Addresses)
        );
        assert_eq!(
            change(|a| a.addresses = vec![a.addresses[0]; 9]),
            Err(Addresses)
        );
        assert_eq!(change(|a| a.weight = 17), Err(Weight));
        assert_eq!(change(|a| a.version.clear()), Err(Version));
        assert_eq!(change(|a| a.version = "1\n2".into()), Err(Version));
        assert_eq!(change(|a| a.denied = vec![a.denied[0]; 65]), Err(Denied));
    }

    #[test]
    fn full_messages_fit_into_their_bounds() {
        let mut announcement = announcement();
        let address: SocketAddr = "[fdff:ffff:ffff::1]:65535".parse().expect("an address");
        announcement.addresses = vec![address; MAX_ADDRESSES];
        announcement.zone = "z".repeat(MAX_ZONE_BYTES);
        announcement.version = "v".repeat(MAX_VERSION_BYTES);
        announcement.denied = vec![NodeId::new([255; 32]); MAX_DENIED];
        announcement.check().expect("valid");
        let addresses = announcement.addresses.clone();
        assert!(encode(&announcement).len() <= MAX_ANNOUNCEMENT_BYTES);
        let id = NodeId::new([255; 32]);
        let greeting = Greeting {
            announcement,
            you: Some((u64::MAX, u64::MAX)),
            contacts: vec![Contact { id, addresses }; MAX_CONTACTS_TOLD],
        };
        let bytes = encode(&greeting);
        assert!(bytes.len() <= MAX_GREETING_BYTES, "{}", bytes.len());
        assert_eq!(decode(&bytes), Ok(greeting));
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Greeting>(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let _ = decode::<Greeting>(&bytes);
            let _ = decode::<Announcement>(&bytes);
        }

        #[test]
        fn a_changed_byte_causes_no_panic(at in 1_usize..60, byte: u8) {
            let mut bytes = encode(&announcement());
            bytes[at] = byte;
            if let Ok(announcement) = decode::<Announcement>(&bytes) {
                let _ = announcement.check();
            }
        }
    }
}
