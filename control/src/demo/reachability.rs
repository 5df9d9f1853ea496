//! Who reaches whom: pings between all pods and to the gateway, and exchanges over TCP and UDP byte by byte.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cluster::Cluster;
use super::interruption::Interruption;
use super::pods::Pod;
use super::traffic::ping::Pinger;
use super::traffic::{Endpoint, Family, exchange};
use crate::kernel::Netlink;
use crate::kernel::pod_interface::{GATEWAY_IPV4, GATEWAY_IPV6};

/// How long the nodes may take to learn of each other's pods. Afterwards everything is tried a few times only.
const LEARN_TIME: Duration = Duration::from_secs(10);
const LATE_TRIES: usize = 3;
const PING_TIME: Duration = Duration::from_millis(500);

/// How two ends lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Way {
    /// A pod and itself: the kernel alone, as a reference.
    #[serde(rename = "within one pod")]
    WithinPod,
    /// A pod and the gateway.
    #[serde(rename = "to the gateway")]
    ToGateway,
    /// Two pods of one node.
    #[serde(rename = "same node")]
    SameNode,
    /// Two pods of two nodes.
    #[serde(rename = "across nodes")]
    AcrossNodes,
}

impl Way {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Way::WithinPod => "within one pod (reference)",
            Way::ToGateway => "to the gateway",
            Way::SameNode => "same node",
            Way::AcrossNodes => "across nodes",
        }
    }

    fn between(one: &Pod, other: &Pod) -> Way {
        if one.node == other.node { Way::SameNode } else { Way::AcrossNodes }
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `ping`, `TCP` or `UDP`.
    pub(super) what: &'static str,
    pub(super) way: Way,
    pub(super) family: Family,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) reached: bool,
    /// How often it was tried.
    pub(super) tries: usize,
    /// Round trip of the ping that came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) round_trip_microseconds: Option<f64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
}

/// Tries everything.
pub(super) fn check(cluster: &Cluster, interruption: &Interruption) -> anyhow::Result<Vec<Row>> {
    let learned = Instant::now() + LEARN_TIME;
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for pod in &cluster.pods {
            interruption.check()?;
            rows.push(ping_gateway(&pod.endpoint, family)?);
            for other in cluster.pods.iter().filter(|other| other.name != pod.name) {
                rows.push(ping_pod(pod, other, family, learned, interruption)?);
            }
        }
        for (client, server) in [(0, 1), (0, 2), (3, 1)] {
            interruption.check()?;
            let (client, server) = (cluster.pod(client)?, cluster.pod(server)?);
            rows.push(exchange_row("TCP", client, server, family, exchange::tcp));
            rows.push(exchange_row("UDP", client, server, family, exchange::udp));
        }
    }
    Ok(rows)
}

fn ping_gateway(from: &Endpoint, family: Family) -> anyhow::Result<Row> {
    let address: IpAddr = match family {
        Family::Ipv4 => GATEWAY_IPV4.into(),
        Family::Ipv6 => GATEWAY_IPV6.into(),
    };
    // A link-local address says nothing without its link.
    let link = Netlink::open_in(&from.namespace)?.existing_link("eth0")?.index;
    let mut pinger = Pinger::open_on_link(from, address, link)?;
    let mut row = row("ping", Way::ToGateway, family, &from.name, "gateway");
    while row.tries < LATE_TRIES && !row.reached {
        row.ping(&mut pinger)?;
    }
    Ok(row)
}

fn ping_pod(
    from: &Pod,
    to: &Pod,
    family: Family,
    learned: Instant,
    interruption: &Interruption,
) -> anyhow::Result<Row> {
    let mut row = row("ping", Way::between(from, to), family, from.name, to.name);
    let mut pinger = Pinger::open(&from.endpoint, to.endpoint.address(family)?)?;
    while !row.reached && (row.tries < LATE_TRIES || Instant::now() < learned) {
        interruption.check()?;
        row.ping(&mut pinger)?;
    }
    Ok(row)
}

fn exchange_row(
    what: &'static str,
    client: &Pod,
    server: &Pod,
    family: Family,
    exchange: fn(&Endpoint, &Endpoint, Family) -> anyhow::Result<()>,
) -> Row {
    let mut row = row(what, Way::between(client, server), family, client.name, server.name);
    row.tries = 1;
    match exchange(&client.endpoint, &server.endpoint, family) {
        Ok(()) => row.reached = true,
        Err(error) => row.failure = Some(format!("{error:#}")),
    }
    row
}

fn row(what: &'static str, way: Way, family: Family, from: &str, to: &str) -> Row {
    let (from, to) = (from.to_owned(), to.to_owned());
    Row { what, way, family, from, to, reached: false, tries: 0, round_trip_microseconds: None, failure: None }
}

impl Row {
    fn ping(&mut self, pinger: &mut Pinger) -> anyhow::Result<()> {
        self.tries += 1;
        let start = Instant::now();
        match pinger.once(PING_TIME)? {
            Some(time) => {
                self.reached = true;
                self.round_trip_microseconds = Some(time.as_nanos() as f64 / 1000.0);
                self.failure = None;
            }
            None => {
                self.failure = Some("no reply came in time".to_owned());
                // A refusal comes at once; asking again at once would only be refused again.
                std::thread::sleep(Duration::from_millis(100).saturating_sub(start.elapsed()));
            }
        }
        Ok(())
    }
}
