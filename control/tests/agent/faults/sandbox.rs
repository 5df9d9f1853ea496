//! A sandbox as a runtime has it: a container's name, a network namespace, and what is known of its attachment.

use std::path::PathBuf;
use std::process::Child;

use millrace_control::kernel::Namespace;
use serde_json::{Value, json};

use super::world::{NODE, SocketAndState};
use crate::directory::{Directory, unique};
use crate::pod::{Answer, give_input, start_plugin};

/// Kubernetes namespace whose pods have a veth.
pub(super) const VETHS: &str = "veths";

/// Ports of the host from here on are asked for.
const FIRST_HOST_PORT: usize = 31_000;

/// What the runtime knows of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Never made, or a DEL said that it is gone.
    Detached,
    /// An ADD said that it is there.
    Attached,
    /// A call was cut short: a DEL is due.
    Nothing,
}

/// One sandbox.
pub(super) struct Sandbox {
    /// Distinguishes it from all others of the test.
    pub(super) number: usize,
    /// As the runtime calls it.
    pub(super) container: String,
    /// What is known of its attachment.
    pub(super) known: Known,
    /// Where its namespace is or was.
    path: PathBuf,
    namespace: Option<Namespace>,
    /// What the last ADD answered.
    result: Value,
}

impl Sandbox {
    /// A new one: with a veth if `veth`, else with a TAP.
    pub(super) fn create(number: usize, veth: bool) -> Sandbox {
        let (path, namespace) = namespace(number);
        let container = format!("{}-{number}", if veth { VETHS } else { "default" });
        Sandbox { number, container, known: Known::Detached, path, namespace: Some(namespace), result: Value::Null }
    }

    /// Its namespace, if it is there.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Takes its namespace away; dropping it does that.
    pub(super) fn lose_namespace(&mut self) -> Option<Namespace> {
        self.namespace.take()
    }

    /// Gives it a new namespace under another path.
    pub(super) fn renew_namespace(&mut self) {
        let (path, namespace) = namespace(self.number);
        (self.path, self.namespace) = (path, Some(namespace));
    }

    /// Whether its pod has a veth.
    pub(super) fn has_veth(&self) -> bool {
        self.pod_namespace() == VETHS
    }

    fn pod_namespace(&self) -> &str {
        self.container.split_once('-').map_or("default", |(namespace, _)| namespace)
    }

    /// Name of its pod, as the agent's reports have it.
    pub(super) fn pod(&self) -> String {
        format!("{}/pod-{}", self.pod_namespace(), self.number)
    }

    /// The host's port it asks for; only some do.
    pub(super) fn host_port(&self) -> Option<usize> {
        (self.number % 3 == 1).then_some(FIRST_HOST_PORT + self.number)
    }

    fn environment(&self, verb: &str, directory: &Directory) -> [(&'static str, String); 6] {
        let pod = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME=pod-{}", self.pod_namespace(), self.number);
        [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", self.container.clone()),
            ("CNI_NETNS", self.path.display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", directory.path().display().to_string()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;{pod}")),
        ]
    }

    /// The network configuration that the runtime passes with this verb.
    pub(super) fn configuration(&self, verb: &str, directory: &Directory) -> Value {
        let mut configuration = network(directory);
        match verb {
            "CHECK" => configuration["prevResult"] = self.result.clone(),
            "ADD" => {
                if let Some(port) = self.host_port() {
                    let mapping = json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
                    configuration["runtimeConfig"] = json!({"portMappings": [mapping]});
                }
            }
            _ => {}
        }
        configuration
    }

    /// Starts the plugin; it waits for its input.
    pub(super) fn start(&self, verb: &str, directory: &Directory) -> Child {
        start_plugin(directory, &self.environment(verb, directory))
    }

    /// The same for a container that nobody knows, with variables changed.
    pub(super) fn start_stranger(&self, verb: &str, directory: &Directory, variables: &[(&str, &str)]) -> Child {
        let mut environment = self.environment(verb, directory);
        let stranger = format!("stranger-{}", self.number);
        for (name, value) in [("CNI_CONTAINERID", stranger.as_str())].iter().chain(variables) {
            let changed = environment.iter_mut().filter(|(known, _)| known == name);
            changed.for_each(|(_, text)| (*value).clone_into(text));
        }
        start_plugin(directory, &environment)
    }

    /// Calls the plugin with what belongs to the verb.
    pub(super) fn call(&self, verb: &str, directory: &Directory) -> Answer {
        let mut plugin = self.start(verb, directory);
        give_input(&mut plugin, self.configuration(verb, directory).to_string().as_bytes());
        Answer::of(plugin)
    }

    /// Takes in what an ADD or DEL of this sandbox answered. `sure` if nothing was cut short: then a refused ADD has left
    /// nothing.
    pub(super) fn learn(&mut self, verb: &str, answer: &Answer, sure: bool) {
        let refused = if sure { self.known } else { Known::Nothing };
        self.known = match (verb, answer.success) {
            ("ADD", true) => {
                self.result = answer.document.clone();
                Known::Attached
            }
            ("DEL", true) => Known::Detached,
            ("ADD", false) => refused,
            ("DEL", false) => Known::Nothing,
            _ => self.known,
        };
    }
}

/// The configuration of the network, as far as every verb has it.
pub(super) fn network(directory: &Directory) -> Value {
    let SocketAndState { socket, state } = SocketAndState::of(directory);
    json!({"cniVersion": "1.1.0", "name": "millrace", "type": "millrace-cni", "socket": socket, "stateDirectory": state})
}

fn namespace(number: usize) -> (PathBuf, Namespace) {
    let namespace = Namespace::create_named(&unique(&format!("{NODE}-{number}"))).expect("namespace");
    (namespace.handle().path().to_owned(), namespace)
}
