//! The same node and address in the words of libp2p.

use std::net::{IpAddr, SocketAddr};

use libp2p::identity::{PublicKey, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use millrace_protocol::node_id::NodeId;

/// Code of the multihash that holds its content itself; ids of ed25519 keys are of that kind.
const IDENTITY_HASH: u64 = 0;

/// Returns whose id it is; `None` if its key is not an ed25519 one.
pub(super) fn node_id(peer: &PeerId) -> Option<NodeId> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    let key = key.try_into_ed25519().ok()?;
    Some(NodeId::new(key.to_bytes()))
}

/// Returns the id of a node; `None` if its bytes are not a point on the curve.
pub(super) fn peer_id(id: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(id.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Returns where TCP connections to an address go.
pub(super) fn tcp(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// Returns the address of a TCP connection.
pub(super) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn a_node_has_one_name_in_both_words() {
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        let node = node_id(&peer).expect("an ed25519 key");
        assert_eq!(peer_id(&node), Some(peer));
        assert_eq!(node_id(&PeerId::random()), None, "a hash hides its key");
    }

    #[test]
    fn addresses_keep_their_port() {
        for text in ["10.0.0.1:5050", "[fd00::1]:5050"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(socket_address(&tcp(address)), Some(address));
        }
        let udp: Multiaddr = "/ip4/10.0.0.1/udp/1".parse().expect("an address");
        assert_eq!(socket_address(&udp), None);
    }
}
