//! Several nodes that find each other, lose each other, and keep others out.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace::cluster::{SecretError, StartError, State, fresh_secret};
use millrace::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

#[path = "cluster/host.rs"]
mod host;
#[path = "cluster/relay.rs"]
mod relay;

use host::{Host, Site, eventually, ids, together};
use relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn ten_nodes_that_know_one_find_all() {
    let site = Site::new();
    let first = site.host("0", &[]);
    let mut hosts = vec![first];
    for number in 1..10 {
        hosts.push(site.host(&number.to_string(), &[hosts[0].address()]));
    }
    let all: Vec<&Host> = hosts.iter().collect();
    together(&all).await;
    eventually("a full mesh whose members agree", || {
        all.iter().all(|host| {
            let status = host.cluster.status();
            status
                .members
                .iter()
                .all(|member| member.connected && member.agrees)
        })
    })
    .await;
    let placements: BTreeSet<u64> = all
        .iter()
        .map(|host| host.view().placement().fingerprint())
        .collect();
    assert_eq!(placements.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_node_is_suspect_then_gone_and_comes_back_as_itself() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    let three = site.host("3", &[one.address()]);
    together(&[&one, &two, &three]).await;
    let (gone, before) = (
        three.id,
        three.view().member(&three.id).expect("itself").generation,
    );
    three.crash().await;
    let crashed = Instant::now();
    eventually("it is asked no more", || {
        !one.alive().contains(&gone) && !two.alive().contains(&gone)
    })
    .await;
    assert!(crashed.elapsed() < Duration::from_secs(4));
    assert!(
        one.members().contains(&gone),
        "it keeps its seat for a while"
    );
    together(&[&one, &two]).await;
    assert!(crashed.elapsed() < Duration::from_secs(15));
    let three = site.host("3", &[two.address()]);
    assert_eq!(three.id, gone);
    together(&[&one, &two, &three]).await;
    let after = one.view().member(&gone).expect("back").generation;
    assert!(after > before, "{after} > {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_gone_at_once_and_may_return() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    two.leave().await;
    let took = eventually("it is gone", || one.members() == ids(&[&one])).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_node_finds_the_others_again_by_what_it_remembers() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    let path = site.path("1").join("contacts.json");
    let known = two.id.to_string();
    eventually("it remembers", || {
        std::fs::read_to_string(&path).is_ok_and(|content| content.contains(&known))
    })
    .await;
    one.crash().await;
    let one = site.host("1", &[]);
    one.cluster.first_view().await;
    assert!(one.alive().contains(&two.id), "the first view has it");
    together(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_know_the_secret_sees_nobody() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    site.write_secrets("other", &[&fresh_secret().expect("random")]);
    let mut config = site.config(&[one.address()]);
    config.secret_file = Some(site.path("other"));
    let stranger = Host::start(&site.path("3"), &config).expect("started");
    eventually("it is told why", || {
        let join = stranger.cluster.status().join;
        join.iter().any(|join| {
            join.error
                .as_deref()
                .is_some_and(|error| error.contains("secret"))
        })
    })
    .await;
    assert_eq!(stranger.members(), ids(&[&stranger]));
    assert_eq!(one.members(), ids(&[&one, &two]));
    assert_eq!(two.members(), ids(&[&one, &two]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_replaced_while_nodes_run_and_who_missed_it_is_out() {
    let site = Site::new();
    let (old, new) = (
        fresh_secret().expect("random"),
        fresh_secret().expect("random"),
    );
    for name in ["secret", "late"] {
        site.write_secrets(name, &[&old]);
    }
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    let mut config = site.config(&[one.address(), two.address()]);
    config.secret_file = Some(site.path("late"));
    let late = Host::start(&site.path("3"), &config).expect("started");
    together(&[&one, &two, &late]).await;
    site.write_secrets("secret", &[&new, &old]);
    // Whoever knows only the new one comes in as soon as the others have read it.
    site.write_secrets("early", &[&new]);
    config.secret_file = Some(site.path("early"));
    let early = Host::start(&site.path("4"), &config).expect("started");
    eventually("old and new meet", || {
        one.alive() == ids(&[&one, &two, &late, &early])
    })
    .await;
    site.write_secrets("secret", &[&new]);
    together(&[&one, &two, &early]).await;
    assert!(!late.alive().contains(&one.id) && !late.alive().contains(&two.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_heals() {
    let (site, tasks) = (Site::new(), Tasks::default());
    let (to_one, one_is) = watch::channel(None);
    let (to_two, two_is) = watch::channel(None);
    let relays = (
        Relay::new(&tasks, one_is).await,
        Relay::new(&tasks, two_is).await,
    );
    let start = |name: &str, advertise: SocketAddr, join: SocketAddr| {
        let mut config = site.config(&[join]);
        config.advertise = Some(advertise);
        Host::start(&site.path(name), &config).expect("started")
    };
    let one = start("1", relays.0.address, relays.1.address);
    let two = start("2", relays.1.address, relays.0.address);
    to_one.send_replace(Some(one.address()));
    to_two.send_replace(Some(two.address()));
    together(&[&one, &two]).await;
    relays.0.set_open(false);
    relays.1.set_open(false);
    eventually("each is alone", || {
        one.members().len() == 1 && two.members().len() == 1
    })
    .await;
    relays.0.set_open(true);
    relays.1.set_open(true);
    together(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_denied_while_it_runs_is_cut_everywhere() {
    let site = Site::new();
    let mut config = site.config(&[]);
    config.deny_file = Some(site.path("denied"));
    let one = Host::start(&site.path("1"), &config).expect("started");
    let two = site.host("2", &[one.address()]);
    let three = site.host("3", &[one.address(), two.address()]);
    together(&[&one, &two, &three]).await;
    std::fs::write(site.path("denied"), three.id.to_string()).expect("written");
    together(&[&one, &two]).await;
    assert_eq!(two.cluster.status().denied, [three.id]);
    eventually("it has nobody either", || three.members() == ids(&[&three])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_itself_has_nobody_to_wait_for() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let address = one.address();
    one.crash().await;
    let mut config = site.config(&[address]);
    config.listen = Some(address);
    let one = Host::start(&site.path("1"), &config).expect("started");
    let start = Instant::now();
    one.cluster.first_view().await;
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(one.members(), ids(&[&one]));
    assert_eq!(one.cluster.status().state, State::Running);
}

/// Copies what makes a node itself, as an image of a disk would.
fn copy_identity(site: &Site, from: &str, to: &str) {
    std::fs::create_dir(site.path(to)).expect("made");
    for file in ["identity.key", "generation"] {
        std::fs::copy(site.path(from).join(file), site.path(to).join(file)).expect("copied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_is_noticed_through_a_third_node() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    copy_identity(&site, "2", "copy");
    let copy = site.host("copy", &[one.address()]);
    assert_eq!(copy.id, two.id);
    eventually("both give up", || {
        [&two, &copy]
            .iter()
            .all(|host| host.cluster.status().state == State::Duplicate)
    })
    .await;
    eventually("nobody has the name", || one.members() == ids(&[&one])).await;
    assert_eq!(one.cluster.status().state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_is_noticed_and_the_cluster_goes_on() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    copy_identity(&site, "2", "copy");
    let copy = site.host("copy", &[two.address()]);
    assert_eq!(copy.id, two.id);
    eventually("the older one gives up", || {
        two.cluster.status().state == State::Duplicate
    })
    .await;
    assert_eq!(two.members(), ids(&[&two]), "it goes on alone");
    assert_eq!(one.cluster.status().state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cost_little_and_keep_nobody_out() {
    let site = Site::new();
    let one = site.host("1", &[]);
    let mut strangers = Vec::new();
    for number in 0..64_u8 {
        let mut stranger = TcpStream::connect(one.address()).await.expect("connected");
        // Some say nothing, some say nonsense.
        if number % 2 == 0 {
            let _ = stranger.write_all(&[number; 4096]).await;
        }
        strangers.push(stranger);
    }
    let two = site.host("2", &[one.address()]);
    together(&[&one, &two]).await;
    let connected = Instant::now();
    for mut stranger in strangers {
        let mut said = Vec::new();
        match stranger.read_to_end(&mut said).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        // The name of a protocol, which every listener says, and nothing else.
        assert!(said.len() < 100, "{} bytes", said.len());
    }
    assert!(
        connected.elapsed() < Duration::from_secs(10),
        "{:?}",
        connected.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_is_said_at_the_start() {
    let site = Site::new();
    let mut config = site.config(&[]);
    config.secret_file = None;
    let error = Host::start(&site.path("1"), &config)
        .err()
        .expect("no secret");
    assert!(
        matches!(error, StartError::Secret(SecretError::Unset)),
        "{error}"
    );
    let one = site.host("2", &[]);
    let mut config = site.config(&[]);
    config.listen = Some(one.address());
    let error = Host::start(&site.path("3"), &config).err().expect("taken");
    assert!(error.to_string().contains("cluster.listen"), "{error}");
}
