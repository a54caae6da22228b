//! Who gets a connection, and what becomes of it when a peer is blocked, removed, restarted or doubled.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace::cluster::Member;
use millrace::peer::{Config, DialError, PeerError};
use millrace_protocol::wire::frame;
use tokio::time::Instant;

use super::fake::{Blob, Node, eventually, introduce, member, quick};
use super::line::Line;
use super::{CHUNK, all_news, ask, open, pair};

#[tokio::test]
async fn a_stranger_gets_no_byte() {
    let (a, stranger) = (Node::start(&quick()), Node::start(&quick()));
    stranger.members.set(vec![stranger.member(), a.member()]);
    let refused = ask(&stranger, a.id).await.expect_err("refused");
    assert!(
        matches!(
            refused,
            PeerError::Lost { .. } | PeerError::Unreachable { .. }
        ),
        "{refused}"
    );
    assert_eq!(a.handler.questions.load(Ordering::Relaxed), 0);
    assert!(a.peers.status().peers.is_empty());
    eventually("it knows that it is refused", || {
        !stranger.peers.is_reachable(&a.id)
    })
    .await;
    let unknown = ask(&a, stranger.id).await.expect_err("no member");
    assert!(matches!(unknown, PeerError::NoMember { .. }));
}

#[tokio::test]
async fn a_node_does_not_talk_to_itself() {
    let (a, _b) = pair();
    let refused = ask(&a, a.id).await.expect_err("itself");
    assert!(matches!(refused, PeerError::NoMember { .. }));
}

#[tokio::test]
async fn somebody_else_at_the_address_of_a_member_is_refused() {
    let nodes = [(); 3].map(|()| Node::start(&quick()));
    let [a, b, c] = &nodes;
    introduce(&[a, b, c]);
    // b's address, under c's name.
    a.members
        .set(vec![a.member(), member(c.id, 1, b.address())]);
    let refused = ask(a, c.id).await.expect_err("somebody else");
    assert!(
        matches!(
            &refused,
            PeerError::Unreachable {
                source: DialError::Refused(_),
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(b.handler.questions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_removed_member_is_cut_at_once() {
    let (a, b) = pair();
    let blob = Blob::of(CHUNK);
    b.handler.blobs.lock().push(blob.clone());
    let mut stream = a.peers.open(b.id, open(blob.digest)).await.expect("asked");
    all_news(&mut stream, 4).await;
    b.members.set(vec![b.member()]);
    let cut = stream.next().await.expect_err("cut");
    assert!(matches!(cut, PeerError::Lost { .. }), "{cut}");
    eventually("the handler's stream is dropped", || b.handler.alive() == 0).await;
    let before = b.handler.questions.load(Ordering::Relaxed);
    ask(&a, b.id).await.expect_err("refused");
    assert_eq!(b.handler.questions.load(Ordering::Relaxed), before);
}

#[tokio::test]
async fn a_blocked_peer_costs_its_delay_once() {
    let a = Node::start(&quick());
    // Takes packets and answers none, as a firewall does.
    let blocked = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let b = Node::start(&quick());
    let entry = |address: SocketAddr, generation| member(b.id, generation, address);
    let address = blocked.local_addr().expect("bound");
    a.members.set(vec![a.member(), entry(address, 1)]);
    b.members.set(vec![a.member(), b.member()]);

    assert!(a.peers.is_reachable(&b.id));
    let first = ask(&a, b.id).await.expect_err("blocked");
    assert!(
        matches!(
            first,
            PeerError::Unreachable {
                source: DialError::TimedOut,
                ..
            }
        ),
        "{first:?}"
    );
    assert!(!a.peers.is_reachable(&b.id));
    let again = Instant::now();
    ask(&a, b.id).await.expect_err("passed over");
    assert!(again.elapsed() < quick().connect_patience / 2);
    let status = a.peers.status();
    let named = status.peers[0].unreachable.as_ref().expect("named");
    assert_eq!(named.reason, "no answer over UDP in time");

    a.members.set(vec![a.member(), entry(b.address(), 1)]);
    eventually("the new address is tried", || a.peers.is_reachable(&b.id)).await;
    ask(&a, b.id).await.expect("answered");
}

#[tokio::test]
async fn a_dial_outlives_the_loss_of_its_first_packets() {
    let config = Config {
        connect_patience: Duration::from_secs(2),
        ..quick()
    };
    let (a, b) = (Node::start(&config), Node::start(&quick()));
    let line = Line::to(b.address(), u64::MAX).await;
    a.members
        .set(vec![a.member(), member(b.id, 1, line.address)]);
    b.members.set(vec![a.member(), b.member()]);
    // The first one, and a second try of two.
    line.lose_there(3);
    ask(&a, b.id).await.expect("answered");
}

/// Two nodes that know each other; the first is told these addresses of the second, and how long to try
/// each alone.
fn dialling(
    addresses: impl FnOnce(SocketAddr) -> Vec<SocketAddr>,
    dial_interval: Duration,
) -> (Node, Node) {
    let config = Config {
        dial_interval,
        connect_patience: Duration::from_secs(15),
        ..quick()
    };
    let (a, b) = (Node::start(&config), Node::start(&quick()));
    let told = Member {
        addresses: addresses(b.address()),
        ..b.member()
    };
    a.members.set(vec![a.member(), told]);
    b.members.set(vec![a.member(), b.member()]);
    (a, b)
}

#[tokio::test]
async fn a_second_address_is_left_alone_while_the_first_may_answer() {
    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    other.set_nonblocking(true).expect("set");
    let second = other.local_addr().expect("bound");
    let (a, b) = dialling(|first| vec![first, second], Duration::from_secs(60));
    ask(&a, b.id).await.expect("answered");
    let nothing = other.recv(&mut [0]).expect_err("nothing was sent there");
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_next_address_is_tried_where_one_says_nothing_or_is_none() {
    let blocked = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let blocked = blocked.local_addr().expect("bound");
    let none = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for (first, interval) in [(blocked, 10), (none, 60_000)] {
        let interval = Duration::from_millis(interval);
        let (a, b) = dialling(|second| vec![first, second], interval);
        ask(&a, b.id).await.expect("answered");
    }
}

#[tokio::test]
async fn who_speaks_another_version_is_named_and_not_dialled() {
    let (a, b) = (Node::start(&quick()), Node::start(&quick()));
    let announced = |generation, wire_version| Member {
        wire_version,
        ..member(b.id, generation, b.address())
    };
    a.members
        .set(vec![a.member(), announced(1, frame::VERSION + 1)]);
    b.members.set(vec![a.member(), b.member()]);
    ask(&a, b.id).await.expect_err("another version");
    assert!(!a.peers.is_reachable(&b.id));
    let status = a.peers.status();
    let named = status.peers[0].unreachable.as_ref().expect("named");
    let reason = "it speaks version 3 of the peer protocol, this node speaks 2";
    assert_eq!(named.reason, reason);
    assert_eq!(b.peers.status().peers.len(), 0, "nobody has come");

    // It was replaced by a release that speaks this node's.
    a.members
        .set(vec![a.member(), announced(2, frame::VERSION)]);
    eventually("it is tried again", || a.peers.is_reachable(&b.id)).await;
    ask(&a, b.id).await.expect("answered");
}

#[tokio::test]
async fn who_connects_by_itself_is_reachable() {
    let (a, b) = (Node::start(&quick()), Node::start(&quick()));
    let blocked = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let address = blocked.local_addr().expect("bound");
    a.members.set(vec![a.member(), member(b.id, 1, address)]);
    b.members.set(vec![a.member(), b.member()]);
    ask(&a, b.id).await.expect_err("blocked");
    ask(&b, a.id).await.expect("the other way is open");
    assert!(a.peers.is_reachable(&b.id));
    ask(&a, b.id)
        .await
        .expect("answered over the connection that b made");
}

#[tokio::test]
async fn nodes_that_dial_each_other_are_both_answered() {
    let (a, b) = pair();
    for _ in 0..20 {
        let (one, other) = tokio::join!(ask(&a, b.id), ask(&b, a.id));
        one.expect("answered");
        other.expect("answered");
    }
}

#[tokio::test]
async fn a_restarted_peer_is_asked_again() {
    let (a, b) = pair();
    ask(&a, b.id).await.expect("answered");
    let b = b.crash_and_restart().await;
    introduce(&[&a, &b]);
    let asked = Instant::now();
    loop {
        match ask(&a, b.id).await {
            Ok(_) => break,
            Err(error) => assert!(asked.elapsed() < Duration::from_secs(15), "{error}"),
        }
    }
    assert_eq!(a.id, a.identity.id());
}

#[tokio::test]
async fn two_nodes_of_one_identity_take_nothing_down() {
    let (a, b) = pair();
    let twin = b.twin();
    twin.members.set(vec![a.member(), twin.member()]);
    for _ in 0..5 {
        // Each replaces the connection of the other, so an answer may be lost on the way.
        let _ = tokio::join!(ask(&b, a.id), ask(&twin, a.id), ask(&a, b.id));
    }
    let c = Node::start(&quick());
    introduce(&[&a, &b, &c]);
    ask(&c, a.id).await.expect("answered");
    ask(&c, b.id).await.expect("answered");
}
