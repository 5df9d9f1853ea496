//! Which versions of objects packets meet: receipts, and the histograms made of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_control::api::model::ReceiptReport;

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{POOLS, Underlay, node_object};
use crate::health::get;

const PATIENCE: Duration = Duration::from_secs(10);

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}]}
";

fn policy(generation: u32, port: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: closed, namespace: shop, generation: {generation}}}\n\
         spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
    )
}

/// The receipt of an object, once `wanted` holds of it.
fn receipt(agent: &Agent, name: &str, wanted: impl Fn(Option<&ReceiptReport>) -> bool) -> Option<ReceiptReport> {
    let end = Instant::now() + PATIENCE;
    loop {
        let all: Vec<ReceiptReport> = agent.client().show("receipts").expect("receipts");
        let found = all.iter().find(|receipt| receipt.name == name);
        if wanted(found) {
            return found.cloned();
        }
        assert!(Instant::now() < end, "{name}: {all:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn receipts_say_what_is_in_force_since_when() {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    directory.write_objects("cluster.yaml", &(POOLS.to_owned() + &node_object(0)));
    directory.write_objects("service.yaml", SERVICE);
    let agent = underlay.start(0, AgentOptions { uplink: false, ..AgentOptions::default() });
    let there = |found: Option<&ReceiptReport>| found.is_some();
    let service = receipt(&agent, "shop/web", there).expect("a receipt");
    assert!(service.in_force && service.took_milliseconds.is_none(), "there at the start: {service:?}");

    directory.write_objects("policy.yaml", &policy(1, "80"));
    let first = receipt(&agent, "shop/closed", there).expect("a receipt");
    assert!(first.in_force && first.took_milliseconds.is_some_and(|took| took < 1e4), "{first:?}");
    assert!(first.tables_generation >= service.tables_generation && first.since >= service.since, "{first:?}");

    directory.write_objects("policy.yaml", &policy(2, "81"));
    let at = |generation| move |found: Option<&ReceiptReport>| found.is_some_and(|one| one.generation == generation);
    let second = receipt(&agent, "shop/closed", at(Some(2))).expect("a receipt");
    assert!(second.in_force && second.resource_version != first.resource_version, "{second:?}");

    directory.write_objects("policy.yaml", &policy(3, "100000"));
    let third = receipt(&agent, "shop/closed", at(Some(3))).expect("a receipt");
    assert!(!third.in_force && third.refused.as_ref().is_some_and(|why| why.contains("100000")), "{third:?}");

    let node = underlay.nodes[0].handle();
    let to: SocketAddr = "127.0.0.1:10249".parse().expect("address");
    let (_, text) = get(node, to, "/metrics").expect("an answer");
    let count = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    assert_eq!(count("millrace_realisation_seconds_count{kind=\"NetworkPolicy\"}"), Some(2.0), "{text}");
    assert_eq!(count("millrace_realisation_seconds_count{kind=\"Service\"}"), Some(0.0), "{text}");

    std::fs::remove_file(directory.file("objects").join("policy.yaml")).expect("removed");
    receipt(&agent, "shop/closed", |found| found.is_none());
    let shown = agent.program(&["show", "receipts", "shop/web"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains("Service") && shown.contains("in force") && shown.contains("at the start"), "{shown}");
}
