//! Objects that appear, change and are wrong while the agent runs.

use std::time::{Duration, Instant};

use millrace_control::api::model::RouteTargetReport;

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, NODES, POOLS, Underlay, node_object, uplink_object};
use crate::pod::Pod;
use crate::traffic;

const BROKEN: &str = "\
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata:
  name: broken
spec:
  cidr: 10.300.0.0/16
";

pub(crate) fn a_broken_object_is_named_and_harms_nothing() {
    let cluster = Cluster::create(1, AgentOptions::default());
    let directory = cluster.directory();
    let (a1, b1) = (Pod::create("a1", "a"), Pod::create("b1", "b"));
    let ends = [a1.add(directory), b1.add(directory)];
    traffic::udp(&ends[0], &ends[1], true);
    let agent = &cluster.agents[0];

    directory.write_objects("broken.yaml", BROKEN);
    let status = agent.wait_for_status(|status| !status.problems.is_empty());
    let problem = &status.problems[0];
    assert!(problem.file.ends_with("broken.yaml"), "{problem:?}");
    assert_eq!((problem.line, status.problems.len()), (Some(6), 1), "{problem:?}");
    let object = problem.object.as_deref().unwrap_or_default();
    assert!(object.contains("IpPool") && object.contains("broken"), "{problem:?}");
    assert!(problem.message.contains("cidr"), "{problem:?}");
    traffic::udp(&ends[1], &ends[0], false);
    traffic::tcp(&ends[0], &ends[1], true);

    // A pod can be plugged in beside it.
    let a2 = Pod::create("a2", "a");
    traffic::udp(&a2.add(directory), &ends[1], true);

    directory.write_objects("broken.yaml", "kind: [not\n  closed");
    let status = agent.wait_for_status(|status| status.problems.iter().any(|problem| problem.line != Some(6)));
    assert!(status.problems.iter().all(|problem| problem.file.ends_with("broken.yaml")), "{status:?}");
    assert!(status.problems.iter().any(|problem| problem.line.is_some()), "{status:?}");
    traffic::udp(&ends[0], &ends[1], true);

    directory.write_objects("broken.yaml", &BROKEN.replace("10.300", "10.200"));
    agent.wait_for_status(|status| status.problems.is_empty());
    traffic::udp(&ends[0], &ends[1], true);
    cluster.agents[1].wait_for_status(|status| status.problems.is_empty());
    cluster.assert_sound();
}

pub(crate) fn new_objects_apply_at_once() {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    let (ipv4, ipv6) = POOLS.split_once("---\n").expect("two pools");
    directory.write_objects("cluster.yaml", &[ipv4, &node_object(0), &uplink_object(0)].concat());
    let agent = underlay.start(0, AgentOptions::default());
    let a1 = Pod::create("a1", "a");
    let first = a1.add(directory);
    assert_eq!(first.addresses.len(), 1, "there is one pool");

    // A node of another program: it has prefixes, no blocks.
    let (_, [address, _]) = NODES[1];
    let peer = node_object(1).replace("status:", "spec: {podCIDRs: [10.9.1.0/24, 'fd09:1::/64']}\nstatus:");
    directory.write_objects("peer.yaml", &peer);
    for prefix in ["10.9.1.0/24", "fd09:1::/64"] {
        let routes = agent.wait_for_routes(|routes| routes.iter().any(|route| route.prefix == prefix));
        let found = routes.iter().find(|route| route.prefix == prefix).expect("it was waited for");
        let RouteTargetReport::Tunnel { peer, .. } = &found.target else { panic!("{found:?}") };
        assert_eq!(peer, address);
        assert!(found.object.contains('b'), "{found:?}");
    }

    // Another pool, from which the next pod gets an address too.
    directory.write_objects("ipv6.yaml", ipv6);
    let end = Instant::now() + Duration::from_secs(10);
    let second = loop {
        let pod = Pod::create("a2", "a");
        let added = pod.add(directory);
        if added.addresses.len() == 2 {
            break (pod, added);
        }
        pod.delete(directory);
        assert!(Instant::now() < end, "the new pool is not used");
    };
    traffic::udp(&second.1, &first, true);

    // The other node's agent starts with the same objects plus its uplink, and claims blocks of its own.
    directory.write_objects("peer.yaml", &[node_object(1), uplink_object(1)].concat());
    let other = underlay.start(1, AgentOptions::default());
    let b1 = Pod::create("b1", "b");
    traffic::check(&second.1, &b1.add(directory));
    for agent in [&agent, &other] {
        agent.assert_sound();
    }
    assert!(agent.status().generation > 3);
}
