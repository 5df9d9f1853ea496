//! A pod: a namespace, plugged in by the real plugin as a container runtime would do it.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use ipnet::IpNet;
use millrace_cni::spec::NetworkResult;
use millrace_control::kernel::{Link, Namespace, Netlink};
use serde_json::Value;

use crate::directory::{Directory, unique};
use crate::traffic::Endpoint;

/// A pod, plugged in or not; its namespace goes with it.
pub(crate) struct Pod {
    /// Its name; its Kubernetes namespace is `default`.
    pub(crate) name: String,
    /// Its node.
    pub(crate) node: String,
    /// Its namespace.
    pub(crate) namespace: Namespace,
}

/// What the plugin answered.
pub(crate) struct Answer {
    /// Whether its exit code was 0.
    pub(crate) success: bool,
    /// What it printed; null if nothing.
    pub(crate) document: Value,
}

impl Answer {
    /// Waits for the plugin's answer; one that was killed has none.
    pub(crate) fn of(plugin: Child) -> Answer {
        let output = plugin.wait_with_output().expect("plugin");
        let document = match output.stdout.as_slice() {
            _ if output.status.code().is_none() => Value::Null,
            [] => Value::Null,
            text => serde_json::from_slice(text).expect("a document"),
        };
        Answer { success: output.status.success(), document }
    }

    /// The error code it printed.
    pub(crate) fn code(&self) -> Option<u64> {
        self.document["code"].as_u64()
    }

    /// The addresses it printed.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        assert!(self.success, "{}", self.document);
        let result: NetworkResult = serde_json::from_value(self.document.clone()).expect("a result");
        result.ips.iter().map(|ip| ip.address.parse::<IpNet>().expect("address").addr()).collect()
    }
}

/// Starts the plugin with these variables; it waits for its input.
pub(crate) fn start_plugin(directory: &Directory, environment: &[(&str, String)]) -> Child {
    let mut command = Command::new(directory.plugin());
    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("plugin")
}

/// Gives a plugin its input. One that has ended does not mind.
pub(crate) fn give_input(plugin: &mut Child, input: &[u8]) {
    let mut stdin = plugin.stdin.take().expect("standard input");
    match stdin.write_all(input) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => panic!("the plugin takes no input: {error}"),
        _ => {}
    }
}

impl Pod {
    /// Makes the namespace only.
    pub(crate) fn create(name: &str, node: &str) -> Pod {
        let namespace = Namespace::create_named(&unique(name)).expect("namespace");
        Pod { name: name.to_owned(), node: node.to_owned(), namespace }
    }

    /// Calls the plugin for it.
    pub(crate) fn call(&self, verb: &str, directory: &Directory) -> Answer {
        self.call_with(verb, directory, &Value::Null)
    }

    /// The same with more keys in the network configuration.
    pub(crate) fn call_with(&self, verb: &str, directory: &Directory, more: &Value) -> Answer {
        Answer::of(self.start(verb, directory, more))
    }

    /// Starts the plugin for it.
    pub(crate) fn start(&self, verb: &str, directory: &Directory, more: &Value) -> Child {
        let socket = directory.file(&format!("{}.sock", self.node));
        let mut configuration = serde_json::json!({
            "cniVersion": "1.1.0", "name": "millrace", "type": "millrace-cni", "socket": socket,
            "stateDirectory": directory.file(&format!("{}.state", self.node)),
        });
        if let (Some(fields), Value::Object(more)) = (configuration.as_object_mut(), more) {
            fields.extend(more.clone());
        }
        let environment = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", format!("container-{}", self.name)),
            ("CNI_NETNS", self.namespace.handle().path().display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", directory.path().display().to_string()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.name)),
        ];
        let mut child = start_plugin(directory, &environment);
        give_input(&mut child, configuration.to_string().as_bytes());
        child
    }

    /// Plugs it in.
    pub(crate) fn add(&self, directory: &Directory) -> Endpoint {
        let addresses = self.call("ADD", directory).addresses();
        assert!(!addresses.is_empty());
        Endpoint { name: self.name.clone(), namespace: self.namespace.handle().clone(), addresses }
    }

    /// Unplugs it.
    pub(crate) fn delete(&self, directory: &Directory) {
        let answer = self.call("DEL", directory);
        assert!(answer.success && answer.document.is_null(), "{}", answer.document);
    }

    /// Its interface, if it has one.
    pub(crate) fn interface(&self) -> Option<Link> {
        Netlink::open_in(self.namespace.handle()).expect("netlink").link("eth0").expect("asked")
    }

    /// The addresses of its interface, link-local ones left out.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let held = Netlink::open_in(self.namespace.handle()).expect("netlink").addresses("eth0").expect("addresses");
        let local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        held.iter().map(IpNet::addr).filter(|address| !local(address)).collect()
    }
}
