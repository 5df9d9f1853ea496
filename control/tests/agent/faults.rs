//! Plugins and the agent are killed at any moment of ADD and DEL: nothing stays behind that nobody holds.
//!
//! A round starts calls for some pods at once, kills the plugin of some and, in every other round, the agent, after
//! times from a seed that sweep over the length of a call, and starts the agent again. Namespaces go without a DEL,
//! DELs come twice. Then it is compared who is
//! attached: by the agent's record, its ports, its addresses, and the interfaces in the pods. A few rounds in a usual
//! run; `MILLRACE_FAULT_ROUNDS` asks for more, and `MILLRACE_FAULT_SEED` for others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millrace_control::api::model::{IpamCheckReport, IpamReport, PortReport};
use serde_json::Value;

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{POOLS, Underlay, node_object};
use crate::pod::Pod;

/// Rounds of a usual run.
const ROUNDS: u64 = 16;
/// Longest time until something is killed; ADD takes some tens of milliseconds.
const LATEST: Duration = Duration::from_millis(120);
const PODS: usize = 5;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) fn nothing_is_lost_whatever_is_killed() {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    directory.write_objects("cluster.yaml", &(POOLS.to_owned() + &node_object(0)));
    let options = AgentOptions { uplink: false, ..AgentOptions::default() };
    let mut agent = underlay.start(0, options);
    let mut pods: Vec<Pod> = (0..PODS).map(|number| Pod::create(&format!("pod-{number}"), "a")).collect();
    let mut numbers = Numbers(setting("MILLRACE_FAULT_SEED", 5));
    for round in 0..setting("MILLRACE_FAULT_ROUNDS", ROUNDS) {
        let mut calls = Vec::new();
        // A namespace goes while its pod is attached, and another comes under a new path.
        let moved = (numbers.next(3) == 0).then(|| numbers.next(PODS as u64) as usize);
        if let Some(pod) = moved {
            pods[pod] = Pod::create(&format!("pod-{pod}"), "a");
        }
        for pod in &pods {
            let verb = if numbers.next(2) == 0 { "ADD" } else { "DEL" };
            let kill = (numbers.next(3) == 0).then(|| Duration::from_micros(numbers.next(LATEST.as_micros() as u64)));
            calls.push((pod.start(verb, directory, &Value::Null), kill));
        }
        let start = Instant::now();
        let agent_dies = (round % 2 == 1).then(|| Duration::from_micros(numbers.next(LATEST.as_micros() as u64)));
        let mut agent_running = Some(agent);
        while start.elapsed() <= LATEST {
            for (child, kill) in &mut calls {
                if kill.is_some_and(|kill| kill <= start.elapsed()) {
                    child.kill().expect("killed");
                    *kill = None;
                }
            }
            if agent_dies.is_some_and(|moment| moment <= start.elapsed())
                && let Some(agent) = agent_running.take()
            {
                agent.kill();
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        agent = agent_running.unwrap_or_else(|| underlay.start(0, options));
        for (child, _) in &mut calls {
            child.wait().expect("ended");
        }
        // A killed plugin leaves its call at work in the agent: a DEL waits for it. A runtime deletes what failed.
        for (number, pod) in pods.iter().enumerate() {
            if numbers.next(2) == 0 || moved == Some(number) {
                pod.delete(directory);
                pod.delete(directory);
            }
        }
        settled(&agent, &pods, round);
    }
    for pod in &pods {
        pod.delete(directory);
    }
    settled(&agent, &pods, u64::MAX);
    let report: IpamReport = agent.client().show("ipam").expect("report");
    assert!(report.addresses.is_empty(), "{report:?}");
    assert!(pods.iter().all(|pod| pod.interface().is_none()));
    let state = directory.file("a.state/pending");
    let waiting = std::fs::read_dir(state).map_or(0, |entries| entries.count());
    assert!(waiting <= PODS, "what waits for the agent is bounded");
}

/// Waits until calls that lost their plugin have ended, then compares.
fn settled(agent: &Agent, pods: &[Pod], round: u64) {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        match differences(agent, pods) {
            Ok(()) => return,
            Err(what) => assert!(Instant::now() < end, "round {round}: {what}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn differences(agent: &Agent, pods: &[Pod]) -> Result<(), String> {
    let client = agent.client();
    let report: IpamReport = client.show("ipam").map_err(|error| error.to_string())?;
    let ports: Vec<PortReport> = client.show("ports").map_err(|error| error.to_string())?;
    let found: IpamCheckReport = client.document("/v1/check/ipam").map_err(|error| error.to_string())?;
    if !found.findings.is_empty() {
        return Err(format!("{:?}", found.findings));
    }
    let parse = |text: &String| text.parse::<IpAddr>().map_err(|error| error.to_string());
    let held: BTreeSet<IpAddr> =
        report.addresses.iter().map(|entry| parse(&entry.address)).collect::<Result<_, _>>()?;
    let of_pods = ports.iter().filter(|port| port.role == "pod").flat_map(|port| &port.addresses);
    let planned: BTreeSet<IpAddr> = of_pods.map(parse).collect::<Result<_, _>>()?;
    let with_interface = pods.iter().filter(|pod| pod.interface().is_some());
    let inside: BTreeSet<IpAddr> = with_interface.flat_map(Pod::addresses).collect();
    if held == planned && held == inside {
        return Ok(());
    }
    Err(format!("held {held:?}, in the tables {planned:?}, in the pods {inside:?}"))
}
