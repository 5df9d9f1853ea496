//! Two workers on an uplink: of one queue, which lanes reach from the other worker, and of two queues.

use std::collections::HashSet;

use millrace_control::api::model::{FlowsReport, PortReport, WorkerReport};

use crate::agent_process::AgentOptions;
use crate::cluster::Cluster;
use crate::pod::Pod;
use crate::root_tests;
use crate::traffic;

/// Flows enough that both of two queues get some, but for one time in 2^31.
const FLOWS: usize = 32;

pub(crate) fn two_workers_share_an_uplink() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        root_tests::not_here("two workers need two processors");
    }
    for queues in [1, 2] {
        let cluster = Cluster::create(queues, AgentOptions { workers: 2, ..AgentOptions::default() });
        let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
        let ends = [0, 1].map(|number: usize| pods[number].add(cluster.directory()));
        traffic::check(&ends[0], &ends[1]);
        // TCP entries go with their connection, those of UDP stay for a while: looked at on the way, all are seen.
        let mut serving: Vec<HashSet<u32>> = vec![HashSet::new(); cluster.agents.len()];
        for _ in 0..FLOWS {
            traffic::tcp_of(&ends[0], &ends[1], true, 100_000);
            traffic::tcp_of(&ends[1], &ends[0], false, 1_000);
            traffic::udp(&ends[0], &ends[1], true);
            traffic::udp(&ends[1], &ends[0], false);
            for (agent, serving) in cluster.agents.iter().zip(&mut serving) {
                let flows: FlowsReport = agent.client().show("flows").expect("flows");
                let tunnelled = flows.flows.iter().filter(|flow| flow.ingress == "tunnel" && flow.packets > 0);
                serving.extend(tunnelled.map(|flow| flow.worker));
            }
        }
        cluster.assert_sound();
        for (agent, serving) in cluster.agents.iter().zip(serving) {
            let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
            let of_role = |role: &str| ports.iter().find(|port| port.role == role).expect("port").queues.len();
            assert_eq!((of_role("uplink"), of_role("pod")), (queues as usize, 2), "{ports:#?}");
            let workers: Vec<WorkerReport> = agent.client().show("workers").expect("workers");
            let idle = workers.iter().filter(|worker| worker.flow_cache_hits == 0).count();
            assert_eq!((workers.len(), idle), (2, 0), "both workers forward: {workers:#?}");
            assert_eq!(serving.len(), queues as usize, "workers that a queue of the uplink feeds");
        }
    }
}
