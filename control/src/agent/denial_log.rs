//! The log of denied packets: what policies that ask for it have denied, a line each on standard error.
//!
//! Workers put denials into a bounded queue (`engine/src/state/denials.rs`) and never wait for it. This thread looks
//! four times a second and writes at most [`LINES`] lines a look, with the names of pods and nodes as the objects have
//! them now; what is beyond is told as a number, so that a flood of denied packets costs a bounded log.

use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use millrace_engine::packet::parse::protocol;
use millrace_engine::state::{Denials, DeniedPacket};

use super::shared::Shared;
use crate::cluster::Cluster;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(250);

/// Lines a look: 100 a second.
const LINES: usize = 25;

/// The running thread.
pub(super) struct DenialLog {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl DenialLog {
    /// Starts it.
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::bounded(0);
        let state = shared.switch.with(|switch| Arc::clone(switch.state()));
        let thread = std::thread::Builder::new().name("denial-log".into()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let lines = lines(&state.denials, || shared.standing().cluster);
                // Nobody reads a log that cannot be written.
                let _ = std::io::stderr().lock().write_all(lines.as_bytes());
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// What is to be written of all that waits.
fn lines(denials: &Denials, cluster: impl FnOnce() -> Option<Arc<Cluster>>) -> String {
    let Some(first) = denials.take() else { return String::new() };
    let cluster = cluster();
    let waiting = std::iter::once(first).chain(std::iter::from_fn(|| denials.take()));
    let (mut text, mut beyond) = (String::new(), denials.take_lost());
    for (number, denied) in waiting.take(millrace_engine::limits::DENIALS_WAITING).enumerate() {
        if number < LINES {
            text += &line(&denied, cluster.as_deref());
        } else {
            beyond += 1;
        }
    }
    if beyond > 0 {
        text += &format!("denied: {beyond} more packets, not listed\n");
    }
    text
}

fn line(denied: &DeniedPacket, cluster: Option<&Cluster>) -> String {
    let name = |address| cluster.and_then(|cluster| name_of(cluster, address)).map(|name| format!("{name} "));
    let end = |address: IpAddr, port: u16| {
        let name = name(address).unwrap_or_default();
        let port = if port == 0 { String::new() } else { format!(" port {port}") };
        format!("{name}{address}{port}")
    };
    let [source_port, destination_port] = denied.ports;
    format!(
        "denied {}: {} {} > {}: {}\n",
        denied.direction.name(),
        protocol_name(denied.protocol),
        end(denied.source, source_port),
        end(denied.destination, destination_port),
        denied.denial
    )
}

/// The pod that has the address, or else the node.
fn name_of(cluster: &Cluster, address: IpAddr) -> Option<String> {
    let pods = cluster.pods.values().filter(|pod| pod.has_addresses() && pod.addresses.contains(&address));
    let pod = pods.min_by_key(|pod| pod.precedence()).map(|pod| pod.name.to_string());
    let node = || cluster.nodes.values().find(|node| node.addresses.contains(&address));
    pod.or_else(|| node().map(|node| format!("node {}", node.name)))
}

fn protocol_name(number: u8) -> String {
    let name = match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        protocol::ICMP | protocol::ICMPV6 => "icmp",
        other => return format!("protocol {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use millrace_engine::tables::policy::{Denial, Direction, PolicyInfo, RuleCounts, RuleList};

    use super::*;
    use crate::observe::Observed;
    use crate::store::{Event, Located, Object};

    fn cluster() -> Arc<Cluster> {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"nodeName": "a"}, "status": {"podIPs": [{"ip": "10.1.0.5"}]},
        });
        let mut observed = Observed::default();
        observed.take(Event::Applied(Object::read(Located::from(&pod), None).expect("an object")));
        Arc::new(observed.cluster().clone())
    }

    fn denied(port: u16) -> DeniedPacket {
        let policy = PolicyInfo { name: "default/closed".into(), keeps_established: false, logs_denied: true };
        let list = RuleList { policy, rules: Vec::new(), counts: Arc::new(RuleCounts::new(0)) };
        DeniedPacket {
            direction: Direction::Ingress,
            denial: Denial::Isolated([Arc::new(list)].into()),
            source: IpAddr::from([203, 0, 113, 9]),
            destination: IpAddr::from([10, 1, 0, 5]),
            protocol: protocol::TCP,
            ports: [40_000, port],
        }
    }

    #[test]
    fn a_line_has_names_and_the_policy_and_a_flood_is_a_number() {
        let denials = Denials::default();
        assert_eq!(lines(&denials, || panic!("nothing waits")), "");
        denials.put(denied(80));
        let text = lines(&denials, || Some(cluster()));
        assert_eq!(
            text,
            "denied ingress: tcp 203.0.113.9 port 40000 > default/web 10.1.0.5 port 80: isolated by default/closed\n"
        );
        (0..2_000).for_each(|port| denials.put(denied(port)));
        let text = lines(&denials, || None);
        assert_eq!(text.lines().count(), LINES + 1);
        assert_eq!(text.lines().last(), Some("denied: 1975 more packets, not listed"));
    }
}
