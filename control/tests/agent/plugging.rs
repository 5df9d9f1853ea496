//! Pods in and out where something is in the way.

use std::collections::HashSet;
use std::net::IpAddr;

use millrace_cni::spec::code;
use millrace_control::kernel::{LinkChange, Netlink};

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, Underlay, node_object};
use crate::pod::Pod;
use crate::traffic;

/// Pods plugged at once.
const MANY: usize = 10;

pub(crate) fn without_an_agent_add_asks_to_try_again() {
    let underlay = Underlay::create(1);
    let pod = Pod::create("pod", "a");
    let answer = pod.call("ADD", &underlay.directory);
    assert!(!answer.success);
    assert_eq!(answer.code(), Some(u64::from(code::TRY_AGAIN_LATER)), "{}", answer.document);
    assert!(pod.interface().is_none());
    pod.delete(&underlay.directory);
}

pub(crate) fn a_foreign_interface_is_left_alone() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let pod = Pod::create("pod", "a");
    let mut netlink = Netlink::open_in(pod.namespace.handle()).expect("netlink");
    netlink.create_veth(("eth0", None), ("eth1", None)).expect("veth");
    netlink.change_link("eth0", &LinkChange::up()).expect("up");
    netlink.add_address("eth0", "198.51.100.7/24".parse().expect("prefix")).expect("address");
    let before = (pod.interface(), pod.addresses(), agents[0].status().pods);
    let refused = pod.call("ADD", directory);
    assert_eq!((refused.success, refused.code()), (false, Some(u64::from(code::INVALID_ENVIRONMENT))));
    let text = refused.document["msg"].as_str().unwrap_or_default();
    assert!(text.contains("CNI_IFNAME") && text.contains("eth0"), "{text}");
    pod.delete(directory);
    assert_eq!((pod.interface(), pod.addresses(), agents[0].status().pods), before, "DEL leaves it too");

    assert!(netlink.delete_link("eth0").expect("deleted"));
    let end = pod.add(directory);
    let link = pod.interface();
    let repeated = pod.call("ADD", directory);
    assert_eq!((repeated.success, repeated.code()), (false, Some(u64::from(code::INVALID_ENVIRONMENT))));
    assert_eq!(pod.interface(), link, "the repeated ADD changed nothing");
    let peer = Pod::create("peer", "a");
    traffic::udp(&end, &peer.add(directory), true);
    agents[0].assert_sound();
}

pub(crate) fn many_pods_are_plugged_at_once() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let pods: Vec<Pod> = (0..MANY).map(|number| Pod::create(&format!("pod-{number}"), "a")).collect();
    let ends: Vec<_> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(move || pod.add(directory))).collect();
        adding.into_iter().map(|thread| thread.join().expect("ADD")).collect()
    });
    let addresses: HashSet<IpAddr> = ends.iter().flat_map(|end| end.addresses.iter().copied()).collect();
    assert_eq!(addresses.len(), 2 * MANY, "all have addresses of their own");
    let macs: HashSet<_> = pods.iter().filter_map(Pod::interface).map(|link| link.mac).collect();
    assert_eq!((macs.len(), agents[0].status().pods), (MANY, MANY as u32));
    for (number, end) in ends.iter().enumerate() {
        traffic::udp(end, &ends[(number + 1) % MANY], number % 2 == 0);
    }
    std::thread::scope(|scope| {
        pods.iter().for_each(|pod| drop(scope.spawn(move || pod.delete(directory))));
    });
    assert!(pods.iter().all(|pod| pod.interface().is_none()));
    let status = agents[0].status();
    assert_eq!((status.pods, status.ports), (0, 2), "the host's port and the uplink");
    agents[0].assert_sound();
}

/// A pool of four addresses: the first is the node's, three are for pods.
pub(crate) fn an_address_is_used_again() {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    let pool = "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: small}\nspec: {cidr: 10.1.0.0/30}\n";
    directory.write_objects("cluster.yaml", &(pool.to_owned() + &node_object(0)));
    let agent = underlay.start(0, AgentOptions { uplink: false, ..AgentOptions::default() });
    let pods: Vec<Pod> = (0..4).map(|number| Pod::create(&format!("pod-{number}"), "a")).collect();
    let ends: Vec<_> = pods.iter().take(3).map(|pod| pod.add(directory)).collect();
    traffic::udp(&ends[0], &ends[2], true);
    let full = pods[3].call("ADD", directory);
    assert_eq!(full.code(), Some(u64::from(code::TRY_AGAIN_LATER)), "{}", full.document);
    assert!(pods[3].interface().is_none(), "a failed ADD leaves nothing");
    pods[1].delete(directory);
    let end = pods[3].add(directory);
    assert_eq!(end.addresses, ends[1].addresses, "the only free address");
    traffic::udp(&end, &ends[0], true);
    assert_eq!(agent.status().unaccounted_frames, 0);
}
