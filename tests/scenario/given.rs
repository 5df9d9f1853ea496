//! What a scenario begins with, and what changes in it: objects, pods, ports of bridges.
//!
//! ```text
//! node a vtep 192.0.2.1 2001:db8::1     a Node object, and a switch that runs as this node
//! node c vtep 192.0.2.3 absent          a Node object only; its next hop is not resolved
//! node f vtep 192.0.2.4 foreign         a Node object only; its next hop is resolved
//! node a vtep 192.0.2.1 exempt 198.51.100.0/24   a node whose pods keep their addresses towards this network
//! outside 0.0.0.0/0 on a by 192.0.2.254 as 192.0.2.1   a route of the host by its uplink; the router's MAC address is known
//! outside 192.0.2.0/24 on a as 192.0.2.1   the same of the link's own network
//! no neighbour 192.0.2.254              to nobody any more
//! block 10.1.0.0/24 on a                an IpBlock of this node; pools exist for 10.0.0.0/8 and fd00::/16
//! pod client on a 10.1.0.5 fd00:1::5    plugged in at node a
//! pod cam on a 192.168.5.7 in office    plugged in at node a, in this network
//! pod web on b 10.2.0.7 app=web         the same, and a Pod object with these labels; without labels there is no object
//! policy web {podSelector: {}, ...}     a NetworkPolicy of the namespace `default` with this spec
//! policy web keeps established {...}    the same, by whose change live connections may finish
//! host a 192.0.2.1                      the host of node a has its own port, and these addresses beside those it gets
//! bridge lan on a b vnis: [{vni: 10}]   a Bridge object; on one node, or on all with the listed ones as remotes
//! network office on a vlan: 20          a Network object with its ports `office-wire` and `office-host`, plugged in
//! tenant blue 10.9.0.0/16 vni: 9        a Network object, and an IpPool of the same name that names it
//! block 10.9.1.0/24 on a in blue        an IpBlock of this pool
//! namespace shop in blue                a Namespace object of this network
//! pod web on a 10.9.1.5 in blue         plugged in at node a, in this network
//! port p1 on a in lan vlan: 20          a Port object, plugged in; `port m on a` is the end of a mirror
//! no pod client · no block 10.1.0.0/24 · no node a · no policy web · no port p1
//! | kind: Node ...                      a line of YAML, as written in an object file
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// A line of `given`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Node { name: String, addresses: Vec<IpAddr>, presence: Presence, exempt: Option<IpNet> },
    Outside { prefix: IpNet, node: String, gateway: Option<IpAddr>, source: IpAddr },
    NoNeighbour(IpAddr),
    Block { cidr: String, node: String, network: Option<String> },
    Tenant { name: String, cidrs: Vec<String>, fields: String },
    Namespace { name: String, network: String },
    Pod { name: String, node: String, addresses: Vec<IpAddr>, labels: Vec<(String, String)>, network: Option<String> },
    Policy { name: String, keeps_established: bool, spec: String },
    Host { node: String, addresses: Vec<IpAddr> },
    Bridge { name: String, nodes: Vec<String>, fields: String },
    Port { name: String, node: String, bridge: Option<String>, fields: String },
    Network { name: String, node: String, fields: String },
    Yaml(String),
    NoPod(String),
    NoBlock(String),
    NoNode(String),
    NoPolicy(String),
    NoPort(String),
}

/// How real a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// A switch runs.
    Running,
    /// Only the object exists, and the kernel knows the way.
    Foreign,
    /// Only the object exists.
    Absent,
}

impl Given {
    /// Reads a line; `None` if it is none of these.
    pub(crate) fn parse(line: &str) -> Result<Option<Self>, String> {
        if let Some(yaml) = line.strip_prefix('|') {
            return Ok(Some(Self::Yaml(yaml.trim().to_owned())));
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let given = match words.as_slice() {
            ["node", name, "vtep", rest @ .., "exempt", network] => Self::Node {
                name: (*name).to_owned(),
                addresses: addresses(rest)?,
                presence: Presence::Running,
                exempt: Some(read(network)?),
            },
            ["node", name, "vtep", rest @ ..] => {
                let presence = match rest.last() {
                    Some(&"absent") => Presence::Absent,
                    Some(&"foreign") => Presence::Foreign,
                    _ => Presence::Running,
                };
                let count = rest.len() - usize::from(presence != Presence::Running);
                Self::Node { name: (*name).to_owned(), addresses: addresses(&rest[..count])?, presence, exempt: None }
            }
            ["outside", prefix, "on", node, "by", gateway, "as", source] => Self::Outside {
                prefix: read(prefix)?,
                node: (*node).to_owned(),
                gateway: Some(read(gateway)?),
                source: read(source)?,
            },
            ["outside", prefix, "on", node, "as", source] => {
                Self::Outside { prefix: read(prefix)?, node: (*node).to_owned(), gateway: None, source: read(source)? }
            }
            ["no", "neighbour", address] => Self::NoNeighbour(read(address)?),
            ["block", cidr, "on", node] => {
                Self::Block { cidr: (*cidr).to_owned(), node: (*node).to_owned(), network: None }
            }
            ["block", cidr, "on", node, "in", network] => {
                Self::Block { cidr: (*cidr).to_owned(), node: (*node).to_owned(), network: Some((*network).to_owned()) }
            }
            ["tenant", name, rest @ ..] => {
                let count = rest.iter().position(|word| word.ends_with(':')).unwrap_or(rest.len());
                let cidrs = rest[..count].iter().map(|cidr| (*cidr).to_owned()).collect();
                Self::Tenant { name: (*name).to_owned(), cidrs, fields: rest[count..].join(" ") }
            }
            ["namespace", name, "in", network] => {
                Self::Namespace { name: (*name).to_owned(), network: (*network).to_owned() }
            }
            ["pod", name, "on", node, rest @ ..] => {
                let (rest, network) = match rest {
                    [rest @ .., "in", network] => (rest, Some((*network).to_owned())),
                    rest => (rest, None),
                };
                let (labels, rest): (Vec<&str>, Vec<&str>) = rest.iter().partition(|word| word.contains('='));
                let labels = labels.iter().filter_map(|label| label.split_once('='));
                let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                let (name, node) = ((*name).to_owned(), (*node).to_owned());
                Self::Pod { name, node, addresses: addresses(&rest)?, labels, network }
            }
            ["policy", name, "keeps", "established", rest @ ..] => {
                Self::Policy { name: (*name).to_owned(), keeps_established: true, spec: rest.join(" ") }
            }
            ["policy", name, rest @ ..] => {
                Self::Policy { name: (*name).to_owned(), keeps_established: false, spec: rest.join(" ") }
            }
            ["host", node, rest @ ..] => Self::Host { node: (*node).to_owned(), addresses: addresses(rest)? },
            ["bridge", name, "on", rest @ ..] => {
                let count = rest.iter().position(|word| word.ends_with(':')).unwrap_or(rest.len());
                let nodes = rest[..count].iter().map(|node| (*node).to_owned()).collect();
                Self::Bridge { name: (*name).to_owned(), nodes, fields: rest[count..].join(" ") }
            }
            ["port", name, "on", node, rest @ ..] => {
                let (bridge, fields) = match rest {
                    ["in", bridge, fields @ ..] => (Some((*bridge).to_owned()), fields),
                    fields => (None, fields),
                };
                Self::Port { name: (*name).to_owned(), node: (*node).to_owned(), bridge, fields: fields.join(" ") }
            }
            ["network", name, "on", node, fields @ ..] => {
                Self::Network { name: (*name).to_owned(), node: (*node).to_owned(), fields: fields.join(" ") }
            }
            ["no", "port", name] => Self::NoPort((*name).to_owned()),
            ["no", "pod", name] => Self::NoPod((*name).to_owned()),
            ["no", "block", cidr] => Self::NoBlock((*cidr).to_owned()),
            ["no", "policy", name] => Self::NoPolicy((*name).to_owned()),
            ["no", "node", name] => Self::NoNode((*name).to_owned()),
            _ => return Ok(None),
        };
        Ok(Some(given))
    }
}

fn addresses(words: &[&str]) -> Result<Vec<IpAddr>, String> {
    words.iter().map(|word| word.parse().map_err(|_| format!("{word:?} is no address"))).collect()
}

/// A number.
pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is no number that fits"))
}

/// An address or prefix.
fn read<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} cannot be read"))
}

/// The objects that stand behind a line, as YAML.
pub(crate) fn yaml(given: &Given, nodes: &BTreeMap<String, Vec<IpAddr>>) -> String {
    match given {
        Given::Bridge { name, nodes: on, fields } => {
            let place = match on.as_slice() {
                [one] => format!("node: {one}"),
                all => {
                    let ends = all.iter().filter_map(|node| Some(format!("\"{}\"", nodes.get(node)?.first()?)));
                    format!("remotes: [{}]", ends.collect::<Vec<_>>().join(", "))
                }
            };
            ours("Bridge", name, &[&place, fields])
        }
        Given::Network { name, node, fields } => {
            ours("Network", name, &[&format!("node: {node}"), "interface: lan0", fields])
        }
        Given::Port { name, node, bridge, fields } => {
            let bridge = bridge.as_ref().map(|bridge| format!("bridge: {bridge}")).unwrap_or_default();
            let tap = format!("tap: {{interface: {name}}}");
            ours("Port", name, &[&format!("node: {node}"), &tap, &bridge, fields])
        }
        Given::Node { name, addresses, .. } => {
            let listed: String =
                addresses.iter().map(|address| format!("  - {{type: InternalIP, address: \"{address}\"}}\n")).collect();
            format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n{listed}")
        }
        Given::Block { cidr, node, network: None } => {
            let pool = if cidr.contains(':') { "six" } else { "four" };
            ours("IpBlock", &block_name(cidr), &[&format!("cidr: \"{cidr}\", pool: {pool}, node: {node}")])
        }
        Given::Block { cidr, node, network: Some(network) } => {
            let pool = pool_name(network, cidr);
            let spec = format!("cidr: \"{cidr}\", pool: {pool}, network: {network}, node: {node}");
            ours("IpBlock", &format!("{network}.{}", block_name(cidr)), &[&spec])
        }
        Given::Tenant { name, cidrs, fields } => {
            let pool = |cidr: &String| {
                ours("IpPool", &pool_name(name, cidr), &[&format!("cidr: \"{cidr}\", network: {name}")])
            };
            ours("Network", name, &[fields]) + &cidrs.iter().map(pool).collect::<String>()
        }
        Given::Namespace { name, network } => format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {{millrace.dev/network: {network}}}}}\n"
        ),
        Given::Pod { name, node, addresses, labels, network } if !labels.is_empty() => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
            let (namespace, name) = pod_name(name);
            let network = network.iter().map(|network| format!(", annotations: {{millrace.dev/network: {network}}}"));
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{}}}{}}}\n\
                 spec: {{nodeName: {node}}}\nstatus: {{phase: Running, podIPs: [{}]}}\n",
                labels.join(", "),
                network.collect::<String>(),
                ips.join(", ")
            )
        }
        Given::Policy { name, keeps_established, spec } => {
            let annotations = if *keeps_established { ", annotations: {millrace.dev/established: keep}" } else { "" };
            let (namespace, name) = pod_name(name);
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: {namespace}{annotations}}}\nspec: {spec}\n"
            )
        }
        Given::Yaml(line) => format!("{line}\n"),
        _ => String::new(),
    }
}

fn ours(kind: &str, name: &str, fields: &[&str]) -> String {
    let fields: Vec<&str> = fields.iter().copied().filter(|field| !field.is_empty()).collect();
    let spec = fields.join(", ");
    format!("---\napiVersion: millrace.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// A pool of each family.
fn pool_name(network: &str, cidr: &str) -> String {
    if cidr.contains(':') { format!("{network}-six") } else { network.to_owned() }
}

/// Namespace and name of what is written `NAME` or `NAMESPACE/NAME`.
pub(crate) fn pod_name(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("default", text))
}

/// Name of the object of a block, as the program itself would name it.
pub(crate) fn block_name(cidr: &str) -> String {
    cidr.replace(['.', ':', '/'], "-").replace("--", "-")
}

/// The pools that every scenario has.
pub(crate) const POOLS: &str = "---\napiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: four}\n\
    spec: {cidr: 10.0.0.0/8}\n---\napiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: six}\n\
    spec: {cidr: \"fd00::/16\"}\n";
