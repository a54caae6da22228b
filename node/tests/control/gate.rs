//! Bad input at the gate, and on the way to it: of who dials a node, and of who is dialled by one.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libp2p::futures::future::join_all;
use libp2p::identity::Keypair;
use millrace::cluster::fresh_secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::door::{Answer, Wire, proofs};
use super::host::{Host, Site, eventually, ids, together};
use super::rogue::Rogue;
use super::{count, secret_of};

/// When a connection that comes to nothing has ended: a second more than the gate allows.
const CLOSED: Duration = Duration::from_secs(4);

/// Connections that were not let in, for whatever reason.
const REFUSED: &str = "millrace_cluster_refused_total";

/// What a node answers to a good proof: which one it was, its instance, its own proof.
const ANSWER: usize = 1 + 8 + 32;

/// Why the node cannot join, if it says so.
fn reason(host: &Host) -> Option<String> {
    let status = host.cluster.status();
    status.join.into_iter().find_map(|join| join.error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_accepts_any_proof_is_found_out_by_its_own() {
    let site = Site::new();
    let (right, wrong) = (secret_of(&site), fresh_secret().expect("random"));
    let (mut sound, at) = Rogue::lie_in_wait(&right, Answer::Proof).await;
    let guest = site.host("guest", &[at]);
    let id = sound.id;
    let joined = || guest.members().contains(&id);
    sound.until("one with the secret is a member", joined).await;

    for (secret, answer) in [
        (&wrong, Answer::Proof),
        (&wrong, Answer::Reflection),
        (&right, Answer::Beyond),
    ] {
        let (mut rogue, at) = Rogue::lie_in_wait(secret, answer).await;
        let one = site.host(&format!("{secret} {answer:?}"), &[at]);
        let id = rogue.id;
        let told = || {
            assert!(!one.members().contains(&id), "{answer:?}");
            assert_eq!(count(&one, "millrace_cluster_connections"), 0, "{answer:?}");
            reason(&one).is_some()
        };
        rogue.until("it is told why it cannot join", told).await;
        let reason = reason(&one).expect("told");
        assert!(reason.contains("secret"), "{answer:?}: {reason}");
        rogue.catch().await;
    }
}

/// Returns how many connections were not let in for this reason.
fn refused(host: &Host, reason: &str) -> u64 {
    let series = format!("{REFUSED}{{reason=\"{reason}\"");
    count(host, &series)
}

/// How a stranger's connection begins; then the stranger waits, or goes.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// Before noise.
    Unheard,
    /// Behind noise.
    AtOnce,
    /// Behind its random number.
    BehindTheNumber,
    /// Within a good proof.
    WithinTheProof,
}

/// All there are, but for the first, which is not behind noise.
const AT_THE_GATE: [Silence; 3] = [
    Silence::AtOnce,
    Silence::BehindTheNumber,
    Silence::WithinTheProof,
];

/// Says this much behind noise and nothing more.
async fn begin(address: SocketAddr, secret: &str, silence: Silence) -> Wire {
    let mut wire = Wire::dial(address, &Keypair::generate_ed25519()).await;
    if !matches!(silence, Silence::AtOnce) {
        let proof = wire.proof(secret).await;
        if matches!(silence, Silence::WithinTheProof) {
            let message = proofs(&[proof]);
            wire.say(&message[..message.len() - 1]).await;
        }
    }
    wire
}

/// Says this much and nothing more; returns what the node said, and how long after that it closed.
async fn fall_silent(address: SocketAddr, secret: &str, silence: Silence) -> (usize, Duration) {
    if matches!(silence, Silence::Unheard) {
        let mut stream = connect(address).await;
        let silent = Instant::now();
        return (rest(&mut stream).await.len(), silent.elapsed());
    }
    let mut wire = begin(address, secret, silence).await;
    let silent = Instant::now();
    (wire.rest().await.len(), silent.elapsed())
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("connected")
}

/// Returns what the node says until it closes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    if let Err(error) = stream.read_to_end(&mut said).await {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn who_falls_silent_at_the_gate_is_gone_soon_and_keeps_nobody_out() {
    let site = Site::new();
    let (one, secret) = (site.host("1", &[]), secret_of(&site));
    let kind = |number: usize| match number % 4 {
        0 => Silence::Unheard,
        at_the_gate => AT_THE_GATE[at_the_gate - 1],
    };
    let address = one.address();
    let silent = join_all((0..32).map(|number| fall_silent(address, &secret, kind(number))));
    let newcomer = async {
        let two = site.host("2", &[address]);
        together(&[&one, &two]).await;
        two
    };
    let (silent, two) = tokio::join!(silent, newcomer);
    for (number, (said, took)) in silent.into_iter().enumerate() {
        let silence = kind(number);
        // Its random number, which it says to everybody.
        let number = match silence {
            Silence::AtOnce => 32,
            _ => 0,
        };
        assert_eq!(said, number, "{silence:?}");
        assert!(took < CLOSED, "{silence:?}: {took:?}");
    }
    assert_eq!(one.members(), ids(&[&one, &two]));
    let counted = || refused(&one, "timeout") == 32;
    eventually("all who were silent are counted", counted).await;
    assert_eq!(count(&one, REFUSED), 32, "and nobody else is");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_off_before_it_is_let_in_is_counted() {
    let site = Site::new();
    let (one, secret) = (site.host("1", &[]), secret_of(&site));
    let mut gone = 0;
    let mut expect_one_more = async |what: &str| {
        gone += 1;
        eventually(what, || refused(&one, "broken") == gone).await;
    };
    drop(connect(one.address()).await);
    expect_one_more("who says nothing and goes").await;
    let mut stream = connect(one.address()).await;
    stream
        .write_all(b"\x13/multistream/1.0.0\n")
        .await
        .expect("said");
    stream.shutdown().await.expect("ended");
    rest(&mut stream).await;
    expect_one_more("who goes before noise").await;
    for silence in AT_THE_GATE {
        let mut wire = begin(one.address(), &secret, silence).await;
        wire.end().await;
        wire.rest().await;
        expect_one_more(&format!("who goes {silence:?}")).await;
        drop(begin(one.address(), &secret, silence).await);
        expect_one_more(&format!("whose connection ends {silence:?}")).await;
    }
    assert_eq!(count(&one, REFUSED), gone, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_another_protocol_is_counted() {
    let one = Site::new().host("1", &[]);
    let mut expected = 0;
    // A length that nothing has, and a line that is no name of a protocol.
    for nonsense in [&[0xff; 64][..], b"\x05GET /"] {
        let mut stream = connect(one.address()).await;
        stream.write_all(nonsense).await.expect("said");
        rest(&mut stream).await;
        expected += 1;
        let counted = || refused(&one, "nonsense") == expected;
        eventually("nonsense is counted", counted).await;
    }
    assert_eq!(count(&one, REFUSED), expected);
}

/// Says `message`, and hears nothing but that the node closes.
async fn is_turned_away(wire: &mut Wire, message: &[u8], what: &str) {
    let start = Instant::now();
    wire.say(message).await;
    assert_eq!(wire.rest().await, b"", "{what}");
    assert!(start.elapsed() < CLOSED, "{what}: {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_proof_is_refused_at_once_and_counted() {
    let site = Site::new();
    let (one, secret) = (site.host("1", &[]), secret_of(&site));
    let other = fresh_secret().expect("random");
    let keys = Keypair::generate_ed25519();
    let dial = || Wire::dial(one.address(), &keys);
    let refused = || refused(&one, "secret");

    let mut sound = dial().await;
    let good = proofs(&[sound.proof(&secret).await]);
    sound.say(&good).await;
    assert_eq!(sound.hear::<ANSWER>().await[0], 0, "the first one fits");

    let mut expected = refused();
    for (what, known, count) in [
        ("no proof", &secret, 0),
        ("five proofs", &secret, 5),
        ("255 proofs", &secret, 255),
        ("another secret", &other, 4),
    ] {
        let mut wire = dial().await;
        let proof = wire.proof(known).await;
        is_turned_away(&mut wire, &proofs(&vec![proof; count]), what).await;
        expected += 1;
        eventually(what, || refused() == expected).await;
    }
    let mut replayed = dial().await;
    replayed.proof(&secret).await;
    is_turned_away(&mut replayed, &good, "what was good before").await;
    eventually("it is counted", || refused() == expected + 1).await;

    let mut cut = dial().await;
    let message = proofs(&[cut.proof(&secret).await]);
    cut.say(&message[..message.len() - 1]).await;
    cut.end().await;
    assert_eq!(cut.rest().await, b"", "half a proof");
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    assert_eq!(refused(), expected + 1, "who breaks off is not refused");
}
