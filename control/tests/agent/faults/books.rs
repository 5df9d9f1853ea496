//! Compares what the runtime knows with everything that an attachment consists of, wherever it stands.
//!
//! Records, addresses, ports, routes and ports of the host in the tables, interfaces in pods and on the node, routes and
//! neighbours of the node's kernel, DELs that wait, files of the agent, its descriptors: what is there must belong to an
//! attachment that an ADD said is there, or have been there before the first; and what an ADD said is there must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use millrace_control::api::model::{IpamCheckReport, IpamReport, PortReport, RouteReport, ServiceReport};
use millrace_control::kernel::{Namespace, NamespaceHandle, Netlink};
use serde_json::Value;

use super::sandbox::{Known, Sandbox};
use super::world::{SocketAndState, World};
use crate::cluster::Underlay;

/// What a file or an interface of the node is called.
type Names = BTreeSet<String>;

/// What the agent's process holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Resources {
    /// Open descriptors.
    pub(super) descriptors: usize,
    /// Threads.
    pub(super) threads: usize,
    /// Memory that is no file's, in KiB.
    pub(super) memory_kib: u64,
}

/// What is there without a pod.
#[derive(Default)]
pub(super) struct Footing {
    /// Descriptors, and how many more with a TAP and with a veth.
    descriptors: usize,
    of_pods: [usize; 2],
    links: Names,
    files: Names,
    fresh: Names,
    routes: BTreeSet<String>,
    kernel_routes: BTreeSet<IpNet>,
    neighbours: BTreeSet<IpAddr>,
}

impl Footing {
    /// Takes in what the process held with one pod, and without it.
    pub(super) fn learn(&mut self, veth: bool, with: Resources, without: Resources) {
        self.descriptors = self.descriptors.max(without.descriptors);
        self.of_pods[usize::from(veth)] = with.descriptors.saturating_sub(without.descriptors);
    }

    /// Takes the node as it is now for a node without pods.
    pub(super) fn take(&mut self, world: &World) {
        let node = world.underlay.nodes[0].handle();
        let fresh = Namespace::create_anonymous().expect("namespace");
        let routes: Vec<RouteReport> = world.agent().client().show("routes").expect("report");
        self.links = links(node);
        self.fresh = links(fresh.handle());
        self.files = names(world.directory().path());
        self.routes = routes.into_iter().map(|route| route.prefix).collect();
        self.kernel_routes = kernel_routes(&world.underlay);
        self.neighbours = neighbours(&world.underlay);
    }
}

/// What the agent's process holds now.
pub(super) fn resources(world: &World) -> Resources {
    let process = format!("/proc/{}", world.agent().process());
    let count = |what: &str| fs::read_dir(format!("{process}/{what}")).map_or(0, Iterator::count);
    let status = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let memory = anonymous.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    Resources { descriptors: count("fd"), threads: count("task"), memory_kib: memory.unwrap_or_default() }
}

fn names(directory: &Path) -> Names {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn links(namespace: &NamespaceHandle) -> Names {
    let links = Netlink::open_in(namespace).expect("netlink").links().expect("links");
    links.into_iter().map(|link| link.name).collect()
}

fn kernel_routes(underlay: &Underlay) -> BTreeSet<IpNet> {
    let routes = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink").own_routes().expect("routes");
    routes.into_iter().map(|route| route.destination).collect()
}

/// Neighbours among pods, as the node's kernel knows them.
fn neighbours(underlay: &Underlay) -> BTreeSet<IpAddr> {
    let known = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink").neighbours().expect("neighbours");
    known.into_iter().map(|neighbour| neighbour.address).filter(is_of_pods).collect()
}

/// Whether the address is out of the pools of the test.
fn is_of_pods(address: &IpAddr) -> bool {
    let pools: [IpNet; 2] = ["10.1.0.0/16", "fd00:1::/64"].map(|pool| pool.parse().expect("a pool"));
    pools.iter().any(|pool| pool.contains(address))
}

/// The agent's record: addresses and port by container; none while an ADD or DEL is not done.
fn records(world: &World) -> BTreeMap<String, Option<(u64, BTreeSet<IpAddr>)>> {
    let state = SocketAndState::of(world.directory()).state;
    let Ok(text) = fs::read_to_string(state.join("attachments.json")) else { return BTreeMap::new() };
    let document: Value = serde_json::from_str(&text).expect("the record is whole at any moment");
    let port = |port: &Value| {
        let addresses = port["addresses"].as_array().expect("addresses").iter().filter_map(Value::as_str);
        let addresses = addresses.map(|address| address.parse::<IpNet>().expect("an address").addr());
        (port["index"].as_u64().expect("a number"), addresses.collect())
    };
    let records = document["attachments"].as_array().expect("a list").iter();
    let record =
        |record: &Value| (record["container_id"].as_str().expect("a name").to_owned(), record.get("port").map(port));
    records.map(record).collect()
}

/// Whether the agent has recorded the container's attachment as complete.
pub(super) fn is_recorded(world: &World, container: &str) -> bool {
    records(world).get(container).is_some_and(Option::is_some)
}

/// The comparison at work.
struct Comparison(Vec<String>);

impl Comparison {
    fn equal<T: PartialEq + Debug>(&mut self, what: &str, found: T, expected: T) {
        if found != expected {
            self.0.push(format!("{what}: found {found:?}, expected {expected:?}"));
        }
    }

    /// What is found beyond what may be.
    fn within<T: Ord + Debug + Clone>(&mut self, what: &str, found: &BTreeSet<T>, allowed: &BTreeSet<T>) {
        let beyond: Vec<&T> = found.difference(allowed).collect();
        if !beyond.is_empty() {
            self.0.push(format!("{what}: {beyond:?} belong to nobody"));
        }
    }
}

/// All differences between what is there and what the runtime knows; none if nothing is lost.
pub(super) fn differences(world: &World, sandboxes: &[Sandbox]) -> Vec<String> {
    let mut comparison = Comparison(Vec::new());
    let attached: Vec<&Sandbox> = sandboxes.iter().filter(|sandbox| sandbox.known == Known::Attached).collect();
    let records = records(world);
    let expected: BTreeSet<&str> = attached.iter().map(|sandbox| sandbox.container.as_str()).collect();
    comparison.equal("records", records.keys().map(String::as_str).collect(), expected);
    let whole = records.iter().filter_map(|(name, port)| Some((name, port.as_ref()?)));
    let ports: BTreeMap<u64, (&String, &BTreeSet<IpAddr>)> =
        whole.map(|(name, (index, addresses))| (*index, (name, addresses))).collect();
    comparison.equal("whole records", ports.len(), records.len());
    let held: BTreeSet<IpAddr> = ports.values().flat_map(|(_, addresses)| addresses.iter().copied()).collect();
    if let Err(error) = reports(world, &attached, &ports, &held, &mut comparison) {
        comparison.0.push(format!("the agent does not tell: {error}"));
    }
    for sandbox in sandboxes {
        let record = records.get(&sandbox.container).and_then(Option::as_ref);
        in_pod(world, sandbox, record.map(|(_, addresses)| addresses), &mut comparison);
    }
    on_node(world, &attached, &held, &mut comparison);
    files(world, &mut comparison);
    let footing = &world.footing;
    let veths = attached.iter().filter(|sandbox| sandbox.has_veth()).count();
    let allowed = footing.descriptors + (attached.len() - veths) * footing.of_pods[0] + veths * footing.of_pods[1];
    let open = resources(world).descriptors;
    if open > allowed {
        comparison.0.push(format!("{open} descriptors are open, {allowed} are explained"));
    }
    comparison.0
}

/// What the agent itself tells.
fn reports(
    world: &World,
    attached: &[&Sandbox],
    records: &BTreeMap<u64, (&String, &BTreeSet<IpAddr>)>,
    held: &BTreeSet<IpAddr>,
    comparison: &mut Comparison,
) -> Result<(), Box<dyn std::error::Error>> {
    let client = world.agent().client();
    let ipam: IpamReport = client.show("ipam")?;
    let given = ipam.addresses.iter().map(|entry| entry.address.parse()).collect::<Result<BTreeSet<IpAddr>, _>>()?;
    comparison.equal("addresses held", &given, held);
    let check: IpamCheckReport = client.document("/v1/check/ipam")?;
    comparison.equal("check ipam", check.findings, Vec::new());
    let ports: Vec<PortReport> = client.show("ports")?;
    let mut of_pods = BTreeMap::new();
    for port in ports.iter().filter(|port| port.role == "pod") {
        let addresses = port.addresses.iter().map(|text| text.parse()).collect::<Result<BTreeSet<IpAddr>, _>>()?;
        of_pods.insert(u64::from(port.index), (port.name.clone(), addresses));
    }
    let of_records = records.iter().map(|(index, (container, addresses))| {
        let pod = attached.iter().find(|sandbox| sandbox.container == **container).map(|sandbox| sandbox.pod());
        (*index, (pod.unwrap_or_else(|| format!("container {container}")), (*addresses).clone()))
    });
    comparison.equal("ports", of_pods, of_records.collect());
    let routes: Vec<RouteReport> = client.show("routes")?;
    let host = |address: &IpAddr| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let blocks = ipam.blocks.iter().map(|block| block.cidr.clone());
    let explained = world.footing.routes.iter().cloned().chain(held.iter().map(host)).chain(blocks).collect();
    let routes = routes.into_iter().map(|route| route.prefix).collect();
    comparison.within("routes", &routes, &explained);
    comparison.within("routes to pods, missing", &held.iter().map(host).collect(), &routes);
    let services: Vec<ServiceReport> = client.show("services")?;
    let services: BTreeSet<String> = services.into_iter().map(|service| service.name).collect();
    let asked = attached.iter().filter_map(|sandbox| Some(format!("pod {}:{}", sandbox.pod(), sandbox.host_port()?)));
    comparison.equal("ports of the host", services, asked.collect());
    // The host routes the pools to the switch, and its own blocks.
    let pools = ipam.pools.iter().map(|pool| &pool.cidr).chain(ipam.blocks.iter().map(|block| &block.cidr));
    let allowed: BTreeSet<IpNet> = pools.map(|cidr| cidr.parse()).collect::<Result<_, _>>()?;
    let allowed = world.footing.kernel_routes.union(&allowed).copied().collect();
    comparison.within("routes of the kernel", &kernel_routes(&world.underlay), &allowed);
    // Each block is an object in a file of its own.
    let objects = names(&world.directory().file("objects"));
    let blocks = objects.iter().filter(|name| name.contains("block")).count();
    comparison.equal("files of blocks", blocks, ipam.blocks.len());
    let others: Vec<&String> = objects.iter().filter(|name| !name.contains("block")).collect();
    comparison.equal("files of objects", format!("{others:?}"), format!("{:?}", [".millrace.lock", "cluster.yaml"]));
    Ok(())
}

fn in_pod(world: &World, sandbox: &Sandbox, recorded: Option<&BTreeSet<IpAddr>>, comparison: &mut Comparison) {
    let Some(namespace) = sandbox.namespace() else { return };
    let mut expected = world.footing.fresh.clone();
    let attached = sandbox.known == Known::Attached;
    expected.extend(attached.then(|| "eth0".to_owned()));
    comparison.equal(&format!("interfaces of {}", sandbox.container), links(namespace.handle()), expected);
    if attached {
        let held = Netlink::open_in(namespace.handle()).expect("netlink").addresses("eth0").unwrap_or_default();
        let held: BTreeSet<IpAddr> = held.iter().map(IpNet::addr).filter(is_of_pods).collect();
        comparison.equal(&format!("addresses in {}", sandbox.container), Some(&held), recorded);
    }
}

fn on_node(world: &World, attached: &[&Sandbox], held: &BTreeSet<IpAddr>, comparison: &mut Comparison) {
    let found = links(world.underlay.nodes[0].handle());
    let (pairs, others): (Names, Names) = found.into_iter().partition(|name| name.starts_with("mrp"));
    let veths = attached.iter().filter(|sandbox| sandbox.has_veth()).count();
    comparison.equal("ends of veth pairs", pairs.len(), veths);
    comparison.equal("interfaces of the node", &others, &world.footing.links);
    let allowed = world.footing.neighbours.union(held).copied().collect();
    comparison.within("neighbours of the kernel", &neighbours(&world.underlay), &allowed);
}

fn files(world: &World, comparison: &mut Comparison) {
    let directory = world.directory();
    comparison.equal("files", &names(directory.path()), &world.footing.files);
    let state = SocketAndState::of(directory).state;
    comparison.equal("DELs that wait", names(&state.join("pending")), Names::new());
    let allowed = ["attachments.json", "pending"].map(str::to_owned).into();
    comparison.within("files of the agent", &names(&state), &allowed);
}
