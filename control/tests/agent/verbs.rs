//! CHECK, GC, STATUS and wishes for addresses, against the real agent and the real kernel.

use std::process::Command;

use millrace_cni::spec::code;
use millrace_control::api::model::{IpamCheckReport, IpamReport};
use millrace_control::kernel::{LinkChange, Netlink};
use millrace_engine::packet::Mac;
use serde_json::{Value, json};

use crate::agent_process::AgentOptions;
use crate::cluster::{AF_XDP, Cluster, Underlay, node_object, uplink_object_of};
use crate::pod::{Answer, Pod};
use crate::traffic;

fn check(pod: &Pod, underlay: &Underlay, result: &Value) -> Answer {
    pod.call_with("CHECK", &underlay.directory, &json!({"prevResult": result}))
}

/// That CHECK fails and says so.
fn assert_broken(answer: &Answer, words: &str) {
    assert_eq!(answer.code(), Some(u64::from(code::ATTACHMENT_BROKEN)), "{}", answer.document);
    assert!(answer.document["msg"].as_str().is_some_and(|text| text.contains(words)), "{words}: {}", answer.document);
}

pub(crate) fn check_finds_what_was_changed_behind_its_back() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let pod = Pod::create("pod", "a");
    let missing = check(&pod, &underlay, &json!({"interfaces": [{"name": "eth0"}]}));
    assert_eq!(missing.code(), Some(u64::from(code::UNKNOWN_CONTAINER)), "{}", missing.document);
    let result = pod.call("ADD", &underlay.directory).document;
    let right = check(&pod, &underlay, &result);
    assert!(right.success, "{}", right.document);

    for (part, named) in
        [("routes", "prevResult lacks the route 0.0.0.0/0 by 169.254.1.1"), ("ips", "prevResult lacks the address")]
    {
        let mut less = result.clone();
        less[part].as_array_mut().expect("a list").remove(0);
        assert_broken(&check(&pod, &underlay, &less), named);
    }
    let mut netlink = Netlink::open_in(pod.namespace.handle()).expect("netlink");
    let own = pod.interface().expect("interface");
    let mut change = |change: LinkChange| netlink.change_link("eth0", &change).expect("changed");
    change(LinkChange { mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..LinkChange::default() });
    assert_broken(&check(&pod, &underlay, &result), "has the MAC address 02:00:00:00:00:09");
    change(LinkChange { mac: Some(own.mac), mtu: Some(1300), ..LinkChange::default() });
    assert_broken(&check(&pod, &underlay, &result), "has the MTU 1300");
    change(LinkChange { mtu: Some(own.mtu), ..LinkChange::default() });
    assert!(check(&pod, &underlay, &result).success);
    change(LinkChange { gso_max_size: Some(65_536), ..LinkChange::default() });
    assert_broken(&check(&pod, &underlay, &result), "builds GSO units longer than 61500 bytes");
    change(LinkChange { gso_max_size: own.gso_max_size, ..LinkChange::default() });
    assert!(check(&pod, &underlay, &result).success);
    for (feature, named) in
        [("tx", "transmit checksum offload switched off"), ("tso", "TCP segmentation offload switched off")]
    {
        let ethtool = |state: &str| {
            let mut command = Command::new("ethtool");
            command.args(["-K", "eth0", feature, state]);
            let output = pod.namespace.handle().enter(|| command.output()).expect("entered").expect("ethtool");
            assert!(output.status.success(), "{feature} {state}: {}", String::from_utf8_lossy(&output.stderr));
        };
        ethtool("off");
        assert_broken(&check(&pod, &underlay, &result), named);
        ethtool("on");
        let again = check(&pod, &underlay, &result);
        assert!(again.success, "{feature}: {}", again.document);
    }
    let address = pod.addresses()[0];
    // An address of another plugin is not ours to judge. It also keeps the routes: with its last address a link loses
    // them.
    netlink.add_address("eth0", "198.51.100.1/32".parse().expect("prefix")).expect("added");
    assert!(check(&pod, &underlay, &result).success);
    netlink.delete_address("eth0", address.into()).expect("deleted");
    assert_broken(&check(&pod, &underlay, &result), &format!("address {address}/"));
    netlink.add_address("eth0", address.into()).expect("added");
    assert!(check(&pod, &underlay, &result).success);
    netlink.change_link("eth0", &LinkChange { up: Some(false), ..LinkChange::default() }).expect("down");
    let down = check(&pod, &underlay, &result);
    assert_broken(&down, "eth0 is down");
    assert_broken(&down, "the route 0.0.0.0/0 by 169.254.1.1 is missing");
    netlink.delete_link("eth0").expect("deleted");
    assert_broken(&check(&pod, &underlay, &result), "interface eth0 is missing");
    pod.delete(&underlay.directory);
    assert_eq!(agents[0].status().pods, 0);
}

pub(crate) fn what_the_runtime_does_not_know_is_collected() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let (kept, lost, other) = (Pod::create("kept", "a"), Pod::create("lost", "a"), Pod::create("other", "b"));
    let ends = [&kept, &lost, &other].map(|pod| pod.add(directory));
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "container-kept", "ifname": "eth0"}]});
    let collected = kept.call_with("GC", directory, &valid);
    assert!(collected.success, "{}", collected.document);
    assert!(lost.interface().is_none() && kept.interface().is_some());
    assert_eq!((agents[0].status().pods, agents[1].status().pods), (1, 1));
    traffic::udp(&ends[0], &ends[2], true);
    let held: IpamReport = agents[0].client().show("ipam").expect("report");
    assert_eq!(held.addresses.len(), 2, "{held:?}");
    lost.delete(directory);
    agents[0].assert_sound();
}

pub(crate) fn status_says_whether_a_pod_could_be_plugged_in() {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    directory.write_objects("cluster.yaml", &node_object(0));
    let pod = Pod::create("pod", "a");
    let absent = pod.call("STATUS", directory);
    assert_eq!(absent.code(), Some(u64::from(code::NOT_AVAILABLE_AND_LIMITED)), "{}", absent.document);
    let agent = underlay.start(0, AgentOptions { uplink: false, ..AgentOptions::default() });
    let without = pod.call("STATUS", directory);
    assert_eq!(without.code(), Some(u64::from(code::NOT_AVAILABLE)), "{}", without.document);
    assert!(without.document["msg"].as_str().is_some_and(|text| text.contains("no IpPool")));
    directory.write_objects("pools.yaml", crate::cluster::POOLS);
    agent.wait_for_routes(|_| pod.call("STATUS", directory).success);
    pod.add(directory);
    pod.delete(directory);
    // The node is to have an uplink and has none: pods reach nobody elsewhere.
    directory.write_objects("uplink.yaml", &uplink_object_of(0, "absent0", AF_XDP));
    agent.wait_for_status(|_| pod.call("STATUS", directory).code() == Some(u64::from(code::NOT_AVAILABLE_AND_LIMITED)));
    let cut_off = pod.call("STATUS", directory);
    assert!(cut_off.document["msg"].as_str().is_some_and(|text| text.contains("absent0")), "{}", cut_off.document);
}

pub(crate) fn wishes_for_addresses_are_met_or_refused() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let (first, second, annotated) =
        (Pod::create("first", "a"), Pod::create("second", "a"), Pod::create("annotated", "b"));
    let wish = json!({"runtimeConfig": {"ips": ["10.1.77.7"], "mac": "02:00:00:00:77:07"}});
    let added = first.call_with("ADD", directory, &wish);
    assert_eq!(added.addresses()[0], "10.1.77.7".parse::<std::net::IpAddr>().expect("address"));
    assert_eq!(first.interface().map(|link| link.mac), Some(Mac([2, 0, 0, 0, 0x77, 7])));
    let taken = second.call_with("ADD", directory, &wish);
    assert_eq!(taken.code(), Some(u64::from(code::TRY_AGAIN_LATER)), "{}", taken.document);
    let outside = second.call_with("ADD", directory, &json!({"runtimeConfig": {"ips": ["192.0.2.77"]}}));
    assert_eq!(outside.code(), Some(u64::from(code::INVALID_CONFIGURATION)), "{}", outside.document);
    assert!(second.interface().is_none());
    // By annotation, and out of the block that node a has claimed for the first.
    let object = "apiVersion: v1\nkind: Pod\nmetadata: {name: annotated, namespace: default, annotations: {millrace.dev/ip: 10.1.77.60}}\n\
                  spec: {nodeName: b, containers: []}\n";
    directory.write_objects("annotated.yaml", object);
    let end = annotated.add(directory);
    assert_eq!(end.addresses[0].to_string(), "10.1.77.60");
    let (from, to) = (traffic::Endpoint { addresses: added.addresses(), ..end_of(&first) }, end);
    agents[0].wait_for_routes(|routes| routes.iter().any(|route| route.prefix == "10.1.77.60/32"));
    traffic::udp(&from, &to, true);
    [&first, &annotated].iter().for_each(|pod| pod.delete(directory));
    let found: IpamCheckReport = agents[0].client().document("/v1/check/ipam").expect("report");
    assert!(found.findings.is_empty(), "{found:?}");
}

fn end_of(pod: &Pod) -> traffic::Endpoint {
    traffic::Endpoint { name: pod.name.clone(), namespace: pod.namespace.handle().clone(), addresses: Vec::new() }
}
