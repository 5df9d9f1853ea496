//! The objects of a case, and the stations that they give names to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::packet::Mac;

use super::packets::{HOST_MAC, UPLINK_MAC};
use crate::scenario::given::{self, Given, POOLS, Presence};

const UPLINK_OBJECT: &str =
    "---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {name: underlay}\nspec: {interface: eth1}\n";

/// Something that sends at a port of its own.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// The port's name in captures.
    pub(super) port: String,
    pub(super) mac: Mac,
    /// What its frames are sent to where their text does not say.
    pub(super) to: Mac,
}

/// What is given at one time.
#[derive(Debug, Default)]
pub(super) struct Objects {
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Objects by kind and name, in the order in which they came.
    texts: Vec<(String, String)>,
    senders: BTreeMap<String, Sender>,
    routed: BTreeSet<String>,
    stations: u8,
}

impl Objects {
    pub(super) fn new(lines: &[String]) -> Result<Self, String> {
        let mut objects = Self::default();
        for line in lines {
            if !objects.change(line)? {
                return Err(format!("{line:?} is not known under given"));
            }
        }
        Ok(objects)
    }

    /// Takes a line of `given` in; false if it is none.
    pub(super) fn change(&mut self, line: &str) -> Result<bool, String> {
        let Some(mut given) = Given::parse(line)? else { return Ok(false) };
        match &mut given {
            Given::Node { name, addresses, presence: Presence::Running, exempt: None } => {
                self.nodes.insert(name.clone(), addresses.clone());
            }
            Given::Pod { name, node, labels, network, .. } => {
                if labels.is_empty() {
                    labels.push(("name".to_owned(), given::pod_name(name).1.to_owned()));
                }
                let routed = network.as_ref().is_none_or(|network| self.routed.contains(network));
                let (namespace, short) = given::pod_name(name);
                if node == "a" {
                    self.sender(name, format!("{namespace}/{short}"), routed);
                }
            }
            Given::Tenant { name, fields, .. } if !fields.contains("layer: 2") => {
                self.routed.insert(name.clone());
            }
            Given::Port { name, .. } => self.sender(name, name.clone(), false),
            Given::Network { name, .. } => {
                for end in ["wire", "host"] {
                    self.sender(&format!("{name}-{end}"), format!("network-{name}-{end}"), false);
                }
            }
            Given::Yaml(line) if line.contains("kind: Pod,") => {
                let name = named(line).split_off("pod ".len());
                self.sender(&name, format!("default/{name}"), true);
            }
            Given::NoPod(name) => self.remove("pod", name)?,
            Given::NoBlock(name) => self.remove("block", name)?,
            Given::NoNode(name) => self.remove("node", name)?,
            Given::NoPolicy(name) => self.remove("policy", name)?,
            Given::NoPort(name) => self.remove("port", name)?,
            Given::Outside { .. } | Given::NoNeighbour(_) | Given::Host { .. } | Given::Node { .. } => {
                return Err(format!("{line:?}: objects do not say this"));
            }
            _ => {}
        }
        self.put(line, given::yaml(&given, &self.nodes));
        Ok(true)
    }

    fn put(&mut self, line: &str, yaml: String) {
        if yaml.trim().is_empty() || yaml.trim() == "---" {
            return;
        }
        let (key, yaml) = match line.strip_prefix('|') {
            Some(object) => (named(object), format!("---\n{yaml}")),
            None => (line.split_whitespace().take(2).collect::<Vec<_>>().join(" "), yaml),
        };
        match self.texts.iter_mut().find(|(known, _)| *known == key) {
            Some((_, text)) => *text = yaml,
            None => self.texts.push((key, yaml)),
        }
    }

    fn remove(&mut self, kind: &str, name: &str) -> Result<(), String> {
        let key = format!("{kind} {name}");
        let before = self.texts.len();
        self.texts.retain(|(known, _)| *known != key);
        if self.texts.len() == before { Err(format!("there is no {key}")) } else { Ok(()) }
    }

    fn sender(&mut self, name: &str, port: String, routed: bool) {
        self.stations += u8::from(!self.senders.contains_key(name));
        let mac = Mac([2, 0, 0x5e, 0, 0x53, 0x10 + self.stations]);
        let to = if routed { GATEWAY_MAC } else { Mac::BROADCAST };
        self.senders.entry(name.to_owned()).or_insert(Sender { port, mac, to });
    }

    /// All objects, as a file.
    pub(super) fn yaml(&self) -> String {
        let texts = self.texts.iter().map(|(_, text)| text.as_str());
        POOLS.lines().map(|line| format!("{line}\n")).chain([UPLINK_OBJECT.to_owned()]).collect::<String>()
            + &texts.collect::<String>()
    }

    pub(super) fn sender_called(&self, name: &str) -> Option<Sender> {
        match name {
            "host" => Some(Sender { port: "millrace0".to_owned(), mac: HOST_MAC, to: GATEWAY_MAC }),
            name => self.senders.get(name).cloned(),
        }
    }

    pub(super) fn station(&self, name: &str) -> Option<Mac> {
        match name {
            "gateway" => Some(GATEWAY_MAC),
            "uplink-a" => Some(UPLINK_MAC),
            name => self.sender_called(name).map(|sender| sender.mac),
        }
    }
}

/// Kind and name of an object in one line, as the line of `given` for its kind begins.
fn named(object: &str) -> String {
    let field =
        |name: &str| object.split(name).nth(1).and_then(|rest| rest.split([',', '}']).next()).unwrap_or_default();
    format!("{} {}", field("kind: ").to_lowercase(), field("name: "))
}
