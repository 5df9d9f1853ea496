//! The network configuration that `deploy/` installs, as a runtime hands it to the plugin.

use millrace_cni::configuration::{DEFAULT_SOCKET, for_add};
use millrace_cni::spec::Version;
use serde_json::{Value, json};

#[test]
fn the_installed_network_configuration_is_one_the_plugin_takes() {
    let list: Value = serde_json::from_str(include_str!("../../../deploy/10-millrace.conflist")).expect("JSON");
    let plugins = list["plugins"].as_array().expect("a list of plugins");
    assert_eq!(plugins.len(), 1);
    // What a runtime adds to the plugin's part: name and version of the list, and what it has for the capabilities.
    let mut document = plugins[0].clone();
    assert_eq!(document["type"], "millrace-cni");
    document["name"] = list["name"].clone();
    document["cniVersion"] = list["cniVersion"].clone();
    let known = json!({
        "ips": ["10.1.0.5/32"], "mac": "02:00:5e:10:00:05", "dns": {"servers": ["10.96.0.10"]},
        "portMappings": [{"hostPort": 80, "containerPort": 8080}], "bandwidth": {"ingressRate": 1_000_000},
    });
    for capability in document["capabilities"].as_object().expect("capabilities").keys() {
        assert!(known.get(capability).is_some(), "{capability} is asked for, and nothing here gives it");
    }
    document["runtimeConfig"] = known;
    let configuration = for_add(document.to_string().as_bytes()).expect("taken");
    assert_eq!(configuration.socket.to_str(), Some(DEFAULT_SOCKET));
    assert_eq!(configuration.addresses.len(), 1);
    assert_eq!(configuration.mac.as_deref(), Some("02:00:5e:10:00:05"));
    assert!(!configuration.dns.fields.is_empty());
    assert_eq!(configuration.port_mappings.len(), 1);
    assert!(!configuration.bandwidth.is_unlimited());
}

/// podman and containerd of Debian 12 speak up to 1.0.0 and read no list; who reads the list takes the newest that it speaks.
#[test]
fn the_installed_network_configuration_is_for_older_runtimes_too() {
    let list: Value = serde_json::from_str(include_str!("../../../deploy/10-millrace.conflist")).expect("JSON");
    assert_eq!(list["cniVersion"], "1.0.0");
    assert_eq!(list["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0", Version::NEWEST.text()]));
}
