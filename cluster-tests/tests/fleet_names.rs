//! Nodes that join by names: a service's name has many addresses, of which some are dead and all
//! change, and a name server may be silent.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_cluster_tests::fake::{Fake, noise, sha256};
use millrace_cluster_tests::fleet::{Fleet, Scene};
use millrace_cluster_tests::load::crowd::pull;
use millrace_cluster_tests::netns::{NameServer, Net};

const MIB: usize = 1 << 20;

/// The name of the nodes, as a headless service has one.
const SERVICE: &str = "millrace.default.test";

/// Names are asked for again every 30 s; the rest is for finding each other.
const ASKED_AGAIN: Duration = Duration::from_secs(45);

/// A node waits 5 s at most for the others before it goes upstream; who waits so long has not found
/// them.
const FOUND: Duration = Duration::from_secs(4);

/// How long a node may take to end that has nothing to finish.
const ENDED: Duration = Duration::from_secs(4);

/// Tells what a node says that the service's name has led it to, sorted.
async fn resolved(fleet: &Fleet, node: usize) -> Result<Vec<IpAddr>> {
    let status = fleet.node(node).status().await?;
    let join = &status["cluster"]["join"][0];
    let addresses = join["resolved"].as_array().context("it shows addresses")?;
    let ip = |address: &serde_json::Value| {
        let address: std::net::SocketAddr = address.as_str()?.parse().ok()?;
        (address.port() == 5050).then(|| address.ip())
    };
    let ips: Option<Vec<IpAddr>> = addresses.iter().map(ip).collect();
    let mut ips = ips.with_context(|| format!("{join}"))?;
    ips.sort_unstable();
    Ok(ips)
}

#[tokio::test]
async fn a_service_leads_to_all_its_addresses_of_which_some_are_dead_and_to_those_it_gets_later()
-> Result<()> {
    let net = Net::of(5).await?;
    let ip = |host: usize| IpAddr::from(net.hosts()[host].data());
    // Host 3 is not there any more; the record of the other kind leads nowhere either.
    net.split(&[0, 1, 2], &[3])?;
    let elsewhere = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let first = [ip(0), ip(3), elsewhere];
    let names = NameServer::start(&net.hosts()[4], SERVICE, &first).await?;
    let server = names.address();
    let plan = Fleet::of(2).on(net.hosts()).each(move |index, node| {
        let service = format!("dns:{SERVICE}:5050");
        // The third knows nobody: it can only be found.
        let join = if index < 2 { vec![service] } else { Vec::new() };
        node.name_server(server).set("cluster/join", join)
    });
    let mut fleet = plan.start().await?;
    for node in [0, 1] {
        assert_eq!(resolved(&fleet, node).await?, first);
    }
    names.change(SERVICE, &[ip(2)])?;
    fleet.join(&plan).await?;
    let all = [0, 1, 2];
    let agreed = fleet.agree_within(ASKED_AGAIN, &all, &all).await;
    agreed.context("the third node was not found")?;
    for node in [0, 1] {
        assert_eq!(resolved(&fleet, node).await?, [ip(2)]);
    }
    Ok(())
}

#[tokio::test]
async fn a_name_leads_to_everybody_who_is_at_one_of_its_addresses() -> Result<()> {
    let net = Net::of(5).await?;
    // The first three know nobody: only who asks for the name brings them together.
    let ip = |host: usize| IpAddr::from(net.hosts()[host].data());
    let service: Vec<IpAddr> = (0..3).map(ip).collect();
    let names = NameServer::start(&net.hosts()[4], SERVICE, &service).await?;
    let server = names.address();
    let fake = Fake::start_at(net.upstream_address(0)).await?;
    let plan = Fleet::of(3).on(net.hosts()).upstream("fake", &fake.url());
    let plan = plan.each(move |index, node| match index {
        3 => {
            let service = vec![format!("dns:{SERVICE}:5050")];
            node.name_server(server).set("cluster/join", service)
        }
        _ => node.set("cluster/join", Vec::<String>::new()),
    });
    let mut fleet = plan.boot().await?;
    let contents = [0_usize, 1, 2].map(|node| (node, noise(node as u64, MIB)));
    for (node, content) in &contents {
        let path = Scene::path(&fake.add_blob("app", content.clone()));
        pull(fleet.node(*node).address(), &path, content).await?;
        fleet.agree_on(&[*node], &[*node]).await;
    }
    let joined = fleet.join(&plan).await?;
    let everybody = [0, 1, 2, joined];
    let agreed = fleet.agree_within(FOUND, &everybody, &everybody).await;
    agreed.context("they were not brought together in time")?;
    assert_eq!(resolved(&fleet, joined).await?, service);
    for (_, content) in &contents {
        let path = Scene::path(&sha256(content));
        for node in everybody {
            pull(fleet.node(node).address(), &path, content).await?;
        }
    }
    assert_eq!(fake.count("GET", "/blobs/"), 3, "each is there once");
    Ok(())
}

#[tokio::test]
async fn nodes_whose_name_has_ipv6_addresses_only_meet_over_ipv6() -> Result<()> {
    let net = Net::of(4).await?;
    let ip = |host: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + host);
    for (number, host) in (0..).zip(&net.hosts()[..3]) {
        host.add_address(ip(number))?;
    }
    let service = [ip(0), ip(1), ip(2)].map(IpAddr::from);
    let names = NameServer::start(&net.hosts()[3], SERVICE, &service).await?;
    let server = names.address();
    let plan = Fleet::of(3).on(net.hosts()).each(move |_, node| {
        node.name_server(server)
            .set("cluster/listen", "[::]:5050")
            .set("cluster/join", vec![format!("dns:{SERVICE}:5050")])
            .unset("cluster/advertise")
    });
    let scene = Scene::on(&net, plan).await?;
    let content = noise(1, MIB);
    let path = scene.add(&content);
    for node in 0..3 {
        scene.pull(node, &path, &content).await?;
        let status = scene.fleet.node(node).status().await?;
        let members = status["cluster"]["members"].as_array().cloned();
        for member in members.context("it shows members")? {
            let address = member["addresses"][0].to_string();
            ensure!(address.contains("[fd00::"), "reached at {address}");
        }
    }
    assert_eq!(scene.fake.count("GET", "/blobs/"), 1);
    Ok(())
}

#[tokio::test]
async fn a_silent_name_server_keeps_no_node_from_joining_by_another_address() -> Result<()> {
    let net = Net::of(3).await?;
    net.hosts()[2].block_udp()?;
    let silent = net.hosts()[2].data();
    let fake = Fake::start_at(net.upstream_address(0)).await?;
    let known = format!("{}:5050", net.hosts()[0].data());
    let plan = Fleet::of(1).on(net.hosts()).upstream("fake", &fake.url());
    let plan = plan.each(move |index, node| match index {
        0 => node,
        _ => node.name_server(silent).set(
            "cluster/join",
            vec!["dns:one.test:5050", "dns:two.test:5050", &known],
        ),
    });
    let mut fleet = plan.start().await?;
    let content = noise(1, MIB);
    let path = Scene::path(&fake.add_blob("app", content.clone()));
    pull(fleet.node(0).address(), &path, &content).await?;
    let joined = fleet.join(&plan).await?;
    let pulled = pull(fleet.node(joined).address(), &path, &content).await?;
    ensure!(pulled.last_byte < FOUND, "{pulled:?}");
    assert_eq!(fake.count("GET", "/blobs/"), 1, "the other node has it");
    let asked = Instant::now();
    fleet.leave(joined).await?;
    ensure!(asked.elapsed() < ENDED, "ended after {:?}", asked.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_node_that_nobody_answers_goes_on_alone_in_time() -> Result<()> {
    /// It waits 5 s for the others; the rest is for starting, and less than the 25 s that clients allow.
    const ALONE: Duration = Duration::from_secs(15);
    let net = Net::of(2).await?;
    net.split(&[0], &[1])?;
    let own = net.hosts()[0].data();
    let fake = Fake::start_at(net.upstream_address(0)).await?;
    // One is silent, one refuses, and one is no name.
    let silent = format!("{}:5050", net.hosts()[1].data());
    let join = [
        silent,
        format!("{own}:5051"),
        "dns:nobody.invalid:5050".to_owned(),
    ];
    let plan = Fleet::of(1).on(net.hosts()).upstream("fake", &fake.url());
    let plan = plan.each(move |_, node| node.set("cluster/join", join.to_vec()));
    let content = noise(1, MIB);
    let digest = fake.add_blob("app", content.clone());
    let begin = Instant::now();
    let fleet = plan.boot().await?;
    pull(fleet.node(0).address(), &Scene::path(&digest), &content).await?;
    let taken = begin.elapsed();
    ensure!(taken < ALONE, "{taken:?}");
    Ok(())
}
