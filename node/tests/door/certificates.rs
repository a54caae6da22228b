//! Certificates: those of the node, from files that change, and those by which clients are let in.

use millrace::registry::Admission;
use millrace::task::Tasks;
use millrace::tls::{ClientAuth, Tls};

use super::door::provider;
use super::pki::{Pki, shorten, shown, talk};
use super::{LATER, SOON, V13, eventually, open_with_tls, ping};

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    provider();
    let pki = Pki::new();
    let (good, other) = (
        pki.sign("mirror.test", LATER),
        pki.sign("mirror.test", LATER),
    );
    let load = || {
        let error = Tls::load(pki.files(None)).expect_err("cannot be used");
        error
            .to_string()
            .replace(&format!("{}/", pki.folder.path().display()), "")
    };
    assert_eq!(load(), "cannot read cert.pem");
    pki.write("cert.pem", &good.certificate);
    assert_eq!(load(), "cannot read key.pem");
    pki.write("key.pem", &other.key);
    assert_eq!(
        load(),
        "the private key in key.pem does not belong to the certificate in cert.pem"
    );
    pki.write("key.pem", "no key");
    assert_eq!(load(), "key.pem is damaged");
    pki.install(&good);
    shorten(&pki.path("cert.pem"), &good.certificate);
    assert_eq!(load(), "cert.pem is damaged");
    pki.write("cert.pem", "");
    assert_eq!(load(), "cert.pem holds no certificate");
    let expired = pki.sign("mirror.test", 2002);
    pki.install(&expired);
    assert!(
        load().starts_with("certificate 1 in cert.pem is valid from "),
        "{}",
        load()
    );
    // A chain is as good as its last member.
    pki.install(&good);
    pki.write(
        "cert.pem",
        &format!("{}{}", good.certificate, expired.certificate),
    );
    assert!(
        load().starts_with("certificate 2 in cert.pem is valid from "),
        "{}",
        load()
    );
    pki.install(&good);
    pki.write("ca.pem", "");
    let mut files = pki.files(Some(ClientAuth::Require));
    files.clientcas = vec![pki.path("none.pem")];
    let error = Tls::load(files).expect_err("no authority");
    assert!(error.to_string().ends_with("none.pem"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_replaced_under_load_and_a_bad_one_is_not() {
    let pki = Pki::new();
    let (first, second) = (
        pki.sign("mirror.test", LATER),
        pki.sign("mirror.test", LATER),
    );
    pki.install(&first);
    let (door, tls) = open_with_tls(&pki, Admission::default(), None).await;
    let tasks = Tasks::default();
    tasks.spawn(tracing::Span::none(), tls.clone().watch(tasks.stopping()));
    let mut old = pki
        .connect(door.address, &V13, None)
        .await
        .expect("a handshake");
    assert_eq!(shown(&old), *first.der());

    // A certificate that was cut off while it was written.
    shorten(&pki.path("cert.pem"), &second.certificate);
    let refused = eventually(async || tls.status().refused).await;
    assert!(
        refused.message.contains("cert.pem is damaged"),
        "{}",
        refused.message
    );
    let stream = pki
        .connect(door.address, &V13, None)
        .await
        .expect("a handshake");
    assert_eq!(shown(&stream), *first.der());

    pki.install(&second);
    let replaced = async || {
        let mut stream = pki
            .connect(door.address, &V13, None)
            .await
            .expect("no handshake fails");
        let answer = talk(&mut stream, &ping()).await.expect("no request fails");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        (shown(&stream) == *second.der()).then_some(())
    };
    eventually(replaced).await;
    assert!(tls.status().refused.is_none());
    assert_eq!(tls.status().reloads, 1);
    // The connection from before is still good.
    let answer = talk(&mut old, &ping()).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    tasks.stop(SOON).await;
}

#[tokio::test]
async fn a_certificate_lets_in_and_a_foreign_one_does_not() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    pki.install(&pki.sign("mirror.test", LATER));
    let (own, foreign) = (
        pki.sign("build7.test", LATER),
        stranger.sign("build7.test", LATER),
    );
    let admission = Admission {
        certificates: true,
        certificate_required: true,
        ..Admission::default()
    };
    let (door, _) = open_with_tls(&pki, admission, Some(ClientAuth::Require)).await;
    let answer = pki
        .ask(door.address, &ping(), Some(&own))
        .await
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for certificate in [None, Some(&foreign)] {
        let answer = pki.ask(door.address, &ping(), certificate).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}
