//! Random clusters: the engine's verdict, through its own slow path, is the oracle's; and what a planner that followed
//! every change has is what one has that sees the cluster for the first time.
//!
//! `MILLRACE_POLICY_CLUSTERS` says how many clusters (2,000 without it); `MILLRACE_SEED` runs one. A mismatch prints
//! the seed and the smallest set of objects that still shows it.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_tests::policies::judge::Judge;
use millrace_tests::policies::random_cluster::{RandomCluster, ground};
use millrace_tests::policies::{Flow, NODE, oracle};
use millrace_tests::random::{Random, Rerun, seeds};
use serde_json::Value;

const FLOWS: usize = 24;
const CHANGES: usize = 3;

fn clusters() -> u64 {
    std::env::var("MILLRACE_POLICY_CLUSTERS").map_or(2_000, |text| text.parse().expect("a number"))
}

/// Addresses of pods of this node.
fn is_here(objects: &[Value], address: IpAddr) -> bool {
    objects.iter().any(|object| {
        let listed = object["status"]["podIPs"].as_array();
        object["kind"] == "Pod"
            && object["spec"]["nodeName"] == NODE
            && listed.is_some_and(|ips| ips.iter().any(|ip| ip["ip"] == address.to_string()))
    })
}

/// What is wrong with one flow, if anything.
fn mismatch(judge: &Judge, objects: &[Value], flow: Flow) -> Option<String> {
    let (expected, found) = (oracle::allowed(objects, flow), judge.allowed(flow));
    (expected.is_ok() != found.is_ok()).then(|| format!("{flow}: the oracle says {expected:?}, the engine {found:?}"))
}

fn fails(objects: &[Value], flow: Flow) -> bool {
    let run = || {
        let mut judge = Judge::new();
        objects.iter().for_each(|object| judge.apply(object));
        judge.settle(false);
        mismatch(&judge, objects, flow).is_some()
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(false)
}

/// Leaves out whatever can be left out, objects first, then items of lists.
fn smallest(mut objects: Vec<Value>, flow: Flow) -> Vec<Value> {
    let mut at = ground().len();
    while at < objects.len() {
        let mut fewer = objects.clone();
        fewer.remove(at);
        if fails(&fewer, flow) { objects = fewer } else { at += 1 }
    }
    for at in ground().len()..objects.len() {
        for pointer in ["/spec/ingress", "/spec/egress"] {
            let count = objects[at].pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
            for item in (0..count).rev() {
                let mut fewer = objects.clone();
                fewer[at].pointer_mut(pointer).and_then(Value::as_array_mut).expect("a list").remove(item);
                if fails(&fewer, flow) {
                    objects = fewer;
                }
            }
        }
    }
    objects
}

fn report(seed: u64, objects: &[Value], flow: Flow, what: &str) -> String {
    let smallest = smallest(objects.to_vec(), flow);
    // JSON is YAML.
    let documents: Vec<String> = smallest[ground().len()..].iter().map(|object| format!("---\n{object:#}")).collect();
    format!("seed {seed}: {what}\n{}", documents.join("\n"))
}

fn check_flows(judge: &Judge, cluster: &RandomCluster, random: &mut Random, seed: u64) -> [u64; 2] {
    let mut verdicts = [0, 0];
    for _ in 0..FLOWS {
        let Some(flow) = cluster.flow(random, |address| is_here(&cluster.objects, address)) else { continue };
        if let Some(what) = mismatch(judge, &cluster.objects, flow) {
            panic!("{}", report(seed, &cluster.objects, flow, &what));
        }
        verdicts[usize::from(oracle::allowed(&cluster.objects, flow).is_ok())] += 1;
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
                judge.settle(false);
            }
        }
        assert!(judge.settle(true), "seed {seed}: a planner that followed differs from one that sees all at once");
        let more = check_flows(&judge, &cluster, random, seed);
        verdicts = [verdicts[0] + more[0], verdicts[1] + more[1]];
        for _ in 0..if seed % 4 == 0 { CHANGES } else { 0 } {
            let (old, new) = cluster.change(random);
            match &new {
                Some(new) => judge.apply(new),
                None => judge.delete(&old),
            }
            assert!(
                judge.settle(true),
                "seed {seed}: after a change the planner differs from one that sees all at once"
            );
            let more = check_flows(&judge, &cluster, random, seed);
            verdicts = [verdicts[0] + more[0], verdicts[1] + more[1]];
        }
    }
    println!("{} packets denied, {} allowed", verdicts[0], verdicts[1]);
    assert!(std::env::var_os("MILLRACE_SEED").is_some() || (verdicts[0] > 1000 && verdicts[1] > 1000), "{verdicts:?}");
}
