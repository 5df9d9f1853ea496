//! Random clusters: the engine's verdict, through its own slow path, is the oracle's; and what a planner that followed
//! every change has is what one has that sees the cluster for the first time. Changes are of every sort: labels,
//! policies, namespaces, blocks, pods that come and go, with and without their objects, named ports, addresses and uids.
//!
//! What is said of a flow's connection without a packet (`policy diff`) is what the stage says of its packet, and
//! `policy reach` has of each pair of pods what the oracle has.
//!
//! `MILLRACE_POLICY_CLUSTERS` says how many clusters (2,000 without it); `MILLRACE_SEED` runs one. A mismatch prints
//! the seed and the smallest objects that still show it, as YAML.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_control::observe::KINDS;
use millrace_control::store::{DirectoryStore, ObjectStore};
use millrace_tests::policies::judge::Judge;
use millrace_tests::policies::random_cluster::{RandomCluster, ground};
use millrace_tests::policies::{Flow, NodeView, oracle, shrink};
use millrace_tests::random::{Random, Rerun, seeds};
use serde_json::Value;

const FLOWS: usize = 24;
/// Changes of each cluster.
const CHANGES: usize = 6;
/// Of so many clusters one is asked who reaches whom.
const REACHED_EACH: u64 = 16;

fn clusters() -> u64 {
    std::env::var("MILLRACE_POLICY_CLUSTERS").map_or(2_000, |text| text.parse().expect("a number"))
}

/// What is wrong with one flow, if anything.
fn mismatch(judge: &Judge, objects: &[Value], view: &NodeView, flow: Flow) -> Option<String> {
    let (expected, found) = (oracle::allowed(objects, view, flow), judge.allowed(flow));
    if expected.is_ok() != found.is_ok() {
        return Some(format!("{flow}: the oracle says {expected:?}, the engine {found:?}"));
    }
    let (packet, connection) = (judge.said_of_packet(flow), judge.said_of_connection(flow));
    (packet != connection)
        .then(|| format!("{flow}: of the packet is said {packet:?}, of its connection {connection:?}"))
}

/// Ports and protocols that are asked of each pair of pods; 0 is ICMP.
const ASKED: [(&str, u16); 8] = [
    ("TCP", 80),
    ("TCP", 81),
    ("UDP", 443),
    ("SCTP", 8080),
    ("TCP", 65_535),
    ("UDP", 1),
    ("SCTP", 30_000),
    ("ICMP", 0),
];

/// Whether the words of `policy reach` have this port.
fn has_port(words: &[String], protocol: &str, port: u16) -> bool {
    words.iter().any(|word| match word.split_once('/') {
        None => word == "all" || word.eq_ignore_ascii_case(protocol),
        Some((name, ports)) => {
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let within = |port: u16| {
                first.parse().is_ok_and(|first: u16| first <= port) && last.parse().is_ok_and(|last: u16| port <= last)
            };
            name.eq_ignore_ascii_case(protocol) && (ports == "all" || within(port))
        }
    })
}

/// `policy reach` has of each pair of pods what the oracle has.
fn check_reach(judge: &Judge, objects: &[Value], view: &NodeView, seed: u64) {
    let report = judge.reach();
    let pods = objects.iter().filter(|object| object["kind"] == "Pod" && object["spec"]["hostNetwork"] != true);
    let pods = pods.filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
    let pods: Vec<(String, Vec<IpAddr>)> = pods
        .map(|pod| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            let listed = pod["status"]["podIPs"].as_array().expect("a list");
            (name, listed.iter().map(|entry| text(&entry["ip"]).parse().expect("an address")).collect())
        })
        .collect();
    for (from, sources) in &pods {
        for (to, targets) in pods.iter().filter(|(to, _)| to != from) {
            let same_family = |source: &IpAddr| targets.iter().find(|target| target.is_ipv4() == source.is_ipv4());
            for (source, destination) in sources.iter().filter_map(|source| Some((*source, *same_family(source)?))) {
                let family = if source.is_ipv4() { "ipv4" } else { "ipv6" };
                let of_pair = report.reach.iter().filter(|reach| reach.source == *from && reach.target == *to);
                let mut of_family = of_pair.filter(|reach| reach.family == "both" || reach.family == family);
                let words = of_family.next().map(|reach| reach.ports.as_slice()).unwrap_or_default();
                for (protocol, port) in ASKED {
                    let flow = Flow { source, destination, protocol, port };
                    let told = oracle::allowed_everywhere(objects, view, flow).is_ok();
                    assert_eq!(has_port(words, protocol, port), told, "seed {seed}: {from} to {to}: {flow}: {words:?}");
                }
            }
        }
    }
}

/// Whether a node with these objects alone shows something; objects that are not valid show nothing.
fn shows(objects: &[Value], view: &NodeView, what: impl Fn(&Judge) -> bool) -> bool {
    let run = || {
        let mut judge = Judge::new();
        objects.iter().for_each(|object| judge.apply(object));
        judge.settle(view, false);
        what(&judge)
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(false)
}

fn report(seed: u64, cluster: &RandomCluster, flow: Flow, what: &str) -> String {
    let (kept, view) = (ground().len(), &cluster.view);
    let smallest = shrink::smallest(cluster.objects.clone(), kept, &|objects: &[Value]| {
        shows(objects, view, |judge| mismatch(judge, objects, view, flow).is_some())
    });
    format!("seed {seed}: {what}\n{view:?}\n{}", shrink::yaml(&smallest[kept..]))
}

fn check_flows(judge: &Judge, cluster: &RandomCluster, random: &mut Random, seed: u64) -> [u64; 2] {
    let mut verdicts = [0, 0];
    for _ in 0..FLOWS {
        let Some(flow) = cluster.flow(random) else { continue };
        if let Some(what) = mismatch(judge, &cluster.objects, &cluster.view, flow) {
            panic!("{}", report(seed, cluster, flow, &what));
        }
        verdicts[usize::from(oracle::allowed(&cluster.objects, &cluster.view, flow).is_ok())] += 1;
    }
    verdicts
}

#[test]
fn the_engine_says_what_the_oracle_says() {
    let mut judge = Judge::new();
    let mut verdicts = [0, 0];
    for seed in seeds(0..clusters()) {
        let _rerun = Rerun { test: "policy_differential", seed };
        let random = &mut Random::new(seed);
        let mut cluster = RandomCluster::new(random);
        judge.forget();
        let mut order: Vec<&Value> = cluster.objects.iter().collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for (at, object) in order.iter().enumerate() {
            judge.apply(object);
            // Half of the clusters are planned while they come in.
            if seed % 2 == 0 && random.per_mille(200) && at + 1 < order.len() {
                judge.settle(&cluster.view, false);
            }
        }
        assert!(
            judge.settle(&cluster.view, true),
            "seed {seed}: a planner that followed differs from one that sees all at once"
        );
        let more = check_flows(&judge, &cluster, random, seed);
        verdicts = [verdicts[0] + more[0], verdicts[1] + more[1]];
        if seed % REACHED_EACH == 0 {
            check_reach(&judge, &cluster.objects, &cluster.view, seed);
        }
        for _ in 0..CHANGES {
            let told = cluster.change(random);
            told.applied.iter().for_each(|object| judge.apply(object));
            told.deleted.iter().for_each(|object| judge.delete(object));
            assert!(
                judge.settle(&cluster.view, true),
                "seed {seed}: after a change the planner differs from one that sees all at once"
            );
            let more = check_flows(&judge, &cluster, random, seed);
            verdicts = [verdicts[0] + more[0], verdicts[1] + more[1]];
        }
    }
    println!("{} packets denied, {} allowed", verdicts[0], verdicts[1]);
    assert!(std::env::var_os("MILLRACE_SEED").is_some() || (verdicts[0] > 1000 && verdicts[1] > 1000), "{verdicts:?}");
}

/// What a mismatch would be told with: denied packets stand in for it, since there is none.
#[test]
fn what_is_found_is_told_by_the_smallest_objects_that_show_it() {
    let kept = ground().len();
    let mut told = 0;
    for seed in 0..200 {
        let random = &mut Random::new(seed);
        let cluster = RandomCluster::new(random);
        let Some(flow) = cluster.flow(random) else { continue };
        let denied = |objects: &[Value]| shows(objects, &cluster.view, |judge| judge.allowed(flow).is_err());
        if !denied(&cluster.objects) {
            continue;
        }
        told += 1;
        let smallest = shrink::smallest(cluster.objects.clone(), kept, &denied);
        // The policy that does it, and of the two pods those without which the packet would go nowhere.
        let policies = |object: &&Value| object["kind"].as_str().is_some_and(|kind| kind.ends_with("NetworkPolicy"));
        let (policies, all) = (smallest[kept..].iter().filter(policies).count(), smallest.len() - kept);
        assert!(policies == 1 && all <= 3, "seed {seed}: {}", shrink::yaml(&smallest[kept..]));
        let directory = std::env::temp_dir().join(format!("millrace-shrunk-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        std::fs::write(directory.join("smallest.yaml"), shrink::yaml(&smallest)).expect("written");
        let store = DirectoryStore::open(&directory).expect("store");
        let mut read: Vec<Value> =
            KINDS.iter().flat_map(|kind| store.list(kind).expect("list")).map(|object| object.to_json()).collect();
        std::fs::remove_dir_all(&directory).expect("removed");
        let order = |object: &Value| (object["kind"].to_string(), object["metadata"].to_string());
        let mut written = smallest;
        written.sort_by_key(order);
        read.sort_by_key(order);
        assert_eq!(read, written, "seed {seed}: the YAML says something else");
        if told == 5 {
            return;
        }
    }
    panic!("only {told} clusters deny their first flow");
}
