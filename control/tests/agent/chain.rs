//! Versions of the specification and chains of plugins, against the real agent and the real kernel.

use millrace_cni::spec::code;
use millrace_control::kernel::{LinkChange, Netlink};
use serde_json::{Value, json};

use crate::agent_process::AgentOptions;
use crate::cluster::Cluster;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys
}

pub(crate) fn every_version_gets_results_of_its_shape() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let pod = Pod::create("pod", "a");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let with = |more: Value| {
            let mut document = json!({"cniVersion": version, "runtimeConfig": {"dns": {"Servers": ["10.96.0.10"]}}});
            document.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            document
        };
        let added = pod.call_with("ADD", directory, &with(Value::Null));
        let result = &added.document;
        assert!(added.success, "{version}: {result}");
        assert_eq!(keys(result), ["cniVersion", "dns", "interfaces", "ips", "routes"], "{version}");
        assert_eq!((&result["cniVersion"], &result["dns"]), (&json!(version), &json!({"nameservers": ["10.96.0.10"]})));
        let interface = &result["interfaces"][0];
        let mtu: &[&str] = if version == "1.1.0" { &["mtu"] } else { &[] };
        assert_eq!(keys(interface), [&["mac"], mtu, &["name", "sandbox"]].concat(), "{version}");
        let link = pod.interface().expect("interface");
        assert_eq!((&interface["name"], &interface["mac"]), (&json!("eth0"), &json!(link.mac.to_string())));
        assert!(version != "1.1.0" || interface["mtu"] == link.mtu);
        let ips = result["ips"].as_array().expect("a list");
        for (ip, family) in ips.iter().zip(["4", "6"]) {
            let of_old: &[&str] = if version < "1.0.0" { &["version"] } else { &[] };
            assert_eq!(keys(ip), [&["address", "gateway", "interface"], of_old].concat(), "{version}");
            assert!(of_old.is_empty() || ip["version"] == family, "{version}: {ip}");
            let address = ip["address"].as_str().expect("a text").split('/').next().expect("an address");
            assert!(pod.addresses().contains(&address.parse().expect("an address")), "{version}: {ip}");
        }
        assert_eq!(ips.len(), 2);
        assert!(
            result["routes"].as_array().is_some_and(|routes| routes.iter().all(|route| keys(route) == ["dst", "gw"]))
        );
        let checked = pod.call_with("CHECK", directory, &with(json!({"prevResult": result})));
        if version < "0.4.0" {
            assert_eq!(checked.code(), Some(u64::from(code::INCOMPATIBLE_VERSION)), "{version}");
        } else {
            assert!(checked.success, "{version}: {}", checked.document);
        }
        // DEL may have the result, nothing, or what it cannot read; it may come again.
        for previous in [result.clone(), Value::Null, json!({"ips": 5})] {
            let deleted = pod.call_with("DEL", directory, &with(json!({"prevResult": previous})));
            assert!(deleted.success && deleted.document.is_null(), "{version}: {}", deleted.document);
        }
        assert!(pod.interface().is_none());
    }
    agents[0].assert_sound();
}

pub(crate) fn plugins_before_and_behind_are_let_be() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let (pod, peer) = (Pod::create("pod", "a"), Pod::create("peer", "a"));
    let peer_end = peer.add(directory);
    let sandbox = pod.namespace.handle().path().display().to_string();

    // An earlier plugin has made our interface: nothing is made, and the runtime is told which variable is wrong.
    let taken = json!({"prevResult": {"interfaces": [{"name": "eth0", "sandbox": sandbox}]}});
    let refused = pod.call_with("ADD", directory, &taken);
    assert_eq!(refused.code(), Some(u64::from(code::INVALID_ENVIRONMENT)), "{}", refused.document);
    assert!(pod.interface().is_none());

    // An earlier plugin has made another one: its part of the result stays as it is, and comes first.
    let earlier = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:99"}, {"name": "lo", "sandbox": sandbox}],
        "ips": [{"address": "127.0.0.1/8", "interface": 1}],
        "routes": [{"dst": "203.0.113.0/24", "gw": "203.0.113.1", "priority": 7}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "vendor.example/note": true,
    });
    let added = pod.call_with("ADD", directory, &json!({"prevResult": earlier}));
    let result = added.document.clone();
    assert!(added.success, "{result}");
    assert_eq!(
        (&result["interfaces"][0], &result["interfaces"][1]),
        (&earlier["interfaces"][0], &earlier["interfaces"][1])
    );
    assert_eq!((&result["interfaces"][2]["name"], &result["ips"][0]), (&json!("eth0"), &earlier["ips"][0]));
    assert!(result["ips"].as_array().is_some_and(|ips| ips[1..].iter().all(|ip| ip["interface"] == 2)), "{result}");
    assert_eq!((&result["routes"][0], &result["dns"]), (&earlier["routes"][0], &earlier["dns"]));
    assert_eq!(result["vendor.example/note"], true);
    let check = |result: &Value| pod.call_with("CHECK", directory, &json!({"prevResult": result}));
    assert!(check(&result).success, "{}", check(&result).document);

    // Later plugins have added an interface and an address, and lowered the MTU, and say so in the result.
    let mut netlink = Netlink::open_in(pod.namespace.handle()).expect("netlink");
    netlink.add_address("eth0", "198.51.100.1/32".parse().expect("prefix")).expect("added");
    netlink.change_link("eth0", &LinkChange { mtu: Some(1_400), ..LinkChange::default() }).expect("changed");
    let mut later = result.clone();
    later["interfaces"].as_array_mut().expect("a list").push(json!({"name": "tunl0", "sandbox": sandbox}));
    later["ips"].as_array_mut().expect("a list").push(json!({"address": "198.51.100.1/32", "interface": 2}));
    let without_mtu = check(&later);
    assert_eq!(without_mtu.code(), Some(u64::from(code::ATTACHMENT_BROKEN)), "nobody says that the MTU was changed");
    later["interfaces"][2]["mtu"] = 1_400.into();
    assert!(check(&later).success, "{}", check(&later).document);
    // What a later plugin says and did not do, or did to what is ours, is wrong.
    netlink.change_link("eth0", &LinkChange { mtu: Some(1_300), ..LinkChange::default() }).expect("changed");
    assert_eq!(check(&later).code(), Some(u64::from(code::ATTACHMENT_BROKEN)));
    netlink.change_link("eth0", &LinkChange { mtu: Some(1_400), ..LinkChange::default() }).expect("changed");
    later["ips"].as_array_mut().expect("a list").remove(1);
    let lacking = check(&later);
    assert!(
        lacking.document["msg"].as_str().is_some_and(|text| text.contains("prevResult lacks")),
        "{}",
        lacking.document
    );

    let addresses = pod.addresses().into_iter().filter(|address| address.to_string() != "198.51.100.1").collect();
    let end = Endpoint { name: "pod".into(), namespace: pod.namespace.handle().clone(), addresses };
    traffic::udp(&end, &peer_end, true);
    pod.delete(directory);
    assert!(pod.interface().is_none());
    agents[0].assert_sound();
}
