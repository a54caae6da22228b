//! Which addresses an upstream may send this node to.
//!
//! Redirects and token services that are not configured are contacted only at public addresses.
//! The check is part of name resolution, so that what was checked is what is connected to; hosts
//! that are addresses themselves never reach a resolver and are checked by the caller.
//! Source: the IANA special-purpose address registries; ARCHITECTURE, invariant 8.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Networks that are not the public internet, or that translate into such.
const REFUSED: [&str; 27] = [
    "0.0.0.0/8",        // this network
    "10.0.0.0/8",       // private
    "100.64.0.0/10",    // carrier-grade NAT; 100.100.100.200 is a cloud's metadata
    "127.0.0.0/8",      // loopback
    "168.63.129.16/32", // Azure's platform service, on a public address
    "169.254.0.0/16",   // link-local; 169.254.169.254 is the clouds' metadata
    "172.16.0.0/12",    // private
    "192.0.0.0/24",     // protocol assignments; 192.0.0.192 is a cloud's metadata
    "192.0.2.0/24",     // documentation
    "192.88.99.0/24",   // 6to4 relays, withdrawn
    "192.168.0.0/16",   // private
    "198.18.0.0/15",    // benchmarks
    "198.51.100.0/24",  // documentation
    "203.0.113.0/24",   // documentation
    "224.0.0.0/4",      // multicast
    "240.0.0.0/4",      // reserved, and broadcast
    "::/96",            // unspecified, loopback, IPv4-compatible
    "64:ff9b:1::/48",   // local translation to IPv4
    "100::/64",         // discard
    "2001::/23",        // protocol assignments, Teredo among them
    "2001:db8::/32",    // documentation
    "3fff::/20",        // documentation
    "5f00::/16",        // segment routing
    "fc00::/7",         // unique local; fd00:ec2::254 is a cloud's metadata
    "fe80::/10",        // link-local
    "fec0::/10",        // site-local, deprecated
    "ff00::/8",         // multicast
];

static REFUSED_NETWORKS: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let parse = |network: &&str| network.parse().expect("the table holds networks");
    REFUSED.iter().map(parse).collect()
});

/// Whether `address` is on the public internet, also when it is an IPv4 address inside an IPv6 one.
pub(super) fn is_public(address: IpAddr) -> bool {
    let refused = REFUSED_NETWORKS
        .iter()
        .any(|network| network.contains(&address));
    let embedded = match address {
        IpAddr::V6(address) => embedded_v4(address),
        IpAddr::V4(_) => None,
    };
    !refused && embedded.is_none_or(|inner| is_public(IpAddr::V4(inner)))
}

/// Returns the IPv4 address that packets to `address` end up at: mapped, translated (NAT64) or 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let v4 = |at: usize| Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(v4(12)),
        [0x2002, ..] => Some(v4(2)),
        _ => None,
    }
}

/// Whether the host of `url` is itself an address that is not public.
pub(super) fn is_private_literal(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => !is_public(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => !is_public(IpAddr::V6(address)),
        Some(Host::Domain(_)) | None => false,
    }
}

/// Resolves names, keeping public addresses only.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port does not matter: the connector puts in the URL's.
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = all.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(io::Error::from(PrivateAddress).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// The name has only addresses that are not public.
#[derive(Debug, thiserror::Error)]
#[error("no public address")]
pub(super) struct PrivateAddress;

impl From<PrivateAddress> for io::Error {
    fn from(error: PrivateAddress) -> Self {
        Self::other(error)
    }
}

/// Whether `error` or one of its causes is [`PrivateAddress`].
pub(super) fn is_private_address(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if error.is::<PrivateAddress>() || wrapped.is_some_and(|inner| inner.is::<PrivateAddress>())
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_only_this_network_reaches_are_refused() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:0a00:0001::",
            "2001::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(
                !is_public(address.parse().expect("an address")),
                "{address}"
            );
        }
    }

    #[test]
    fn the_internet_is_public() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.0.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2600:1f18::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:0101:0101::",
        ] {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn literals_are_recognised_in_every_notation() {
        for url in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://0/",
        ] {
            assert!(is_private_literal(&url.parse().expect("a URL")), "{url}");
        }
        assert!(!is_private_literal(
            &"http://1.1.1.1/".parse().expect("a URL")
        ));
    }

    #[tokio::test]
    async fn names_of_private_addresses_do_not_resolve() {
        let name = "localhost".parse().expect("a name");
        let error = PublicResolver.resolve(name).await.err().expect("refused");
        assert!(is_private_address(&*error));
        assert!(!is_private_address(&io::Error::other("something else")));
    }
}
