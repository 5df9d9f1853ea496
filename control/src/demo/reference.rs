//! What the switch is compared with: the same TCP stream between two pods on veth pairs, whose other ends are AF_XDP
//! ports of a switch in this process, in one bridged segment.
//!
//! A native XDP program on a veth forces segmentation and checksums back onto the pods' kernel, so that every segment
//! crosses alone; that is why pods are on TAPs. All namespaces here are anonymous: they end with this process.

use std::time::Duration;

use anyhow::{Context, ensure};
use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{AfXdpOptions, AfXdpQueue, AttachPreference, Steering, set_transmit_checksum};
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::{
    BridgedPort, BridgedSegment, Member, Port, PortRole, Segment, SegmentIndex, SegmentKind, Snapshot,
};

use super::interruption::Interruption;
use super::traffic::stream::{StreamResult, stream};
use super::traffic::{Endpoint, Family};
use crate::kernel::{LinkChange, Namespace, Netlink};

const PORTS: [&str; 2] = ["port0", "port1"];
const MTU: u32 = 1500;

/// The two pods and the switch between them. The order of the fields is that of their end.
pub(super) struct Reference {
    _switch: Switch,
    _steering: Vec<Steering>,
    pods: [Endpoint; 2],
    _namespaces: [Namespace; 3],
}

impl Reference {
    /// Builds and starts it; the worker runs on `core`.
    pub(super) fn build(core: usize) -> anyhow::Result<Reference> {
        let namespaces =
            [Namespace::create_anonymous()?, Namespace::create_anonymous()?, Namespace::create_anonymous()?];
        let [middle, pods @ ..] = &namespaces;
        let endpoint = |number: usize, namespace: &Namespace| -> anyhow::Result<Endpoint> {
            let address = format!("198.51.100.{}", number + 1);
            connect(middle, namespace, PORTS[number], &address)?;
            let name = format!("reference pod {number}");
            Ok(Endpoint { name, namespace: namespace.handle().clone(), addresses: vec![address.parse()?] })
        };
        let pods = [endpoint(0, &pods[0])?, endpoint(1, &pods[1])?];
        let mut switch = Switch::new(SwitchOptions { cores: vec![core], ..SwitchOptions::default() })?;
        switch.publish(tables()?);
        let steering = middle.handle().enter(|| attach(&mut switch))??;
        switch.start()?;
        Ok(Reference { _switch: switch, _steering: steering, pods, _namespaces: namespaces })
    }

    /// The stream from the first pod to the second.
    pub(super) fn measure(&self, duration: Duration, interruption: &Interruption) -> anyhow::Result<StreamResult> {
        let [client, server] = &self.pods;
        stream(client, server, Family::Ipv4, duration, interruption).context("the reference with AF_XDP on veth")
    }
}

/// A veth pair from `middle` to `pod`, both ends up.
fn connect(middle: &Namespace, pod: &Namespace, port: &str, address: &str) -> anyhow::Result<()> {
    let mut netlink = Netlink::open_in(middle.handle())?;
    netlink.create_veth((port, None), ("eth0", Some(pod.handle())))?;
    netlink.change_link(port, &LinkChange { mtu: Some(MTU), ..LinkChange::up() })?;
    let mut inside = Netlink::open_in(pod.handle())?;
    inside.change_link("eth0", &LinkChange { mtu: Some(MTU), ..LinkChange::up() })?;
    inside.add_address("eth0", format!("{address}/24").parse()?)?;
    // The wire that the pod's kernel would leave the checksums to does not exist.
    pod.handle().enter(|| set_transmit_checksum("eth0", false))?.context("cannot switch checksum offload off")
}

fn tables() -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    let segment = SegmentIndex(0);
    for (number, name) in PORTS.into_iter().enumerate() {
        let role = PortRole::Bridged(BridgedPort::access(segment));
        let index = PortIndex(u16::try_from(number)?);
        snapshot.ports.insert(Port { index, name: name.into(), mtu: MTU, role });
    }
    let members = vec![Member::new(PortIndex(0), None), Member::new(PortIndex(1), None)];
    let kind = SegmentKind::Bridged(BridgedSegment { members, ..BridgedSegment::default() });
    snapshot.segments.insert(Segment { index: segment, name: "reference".into(), vni: None, kind });
    Ok(snapshot)
}

/// Opens the AF_XDP queues, in the namespace of the calling thread.
fn attach(switch: &mut Switch) -> anyhow::Result<Vec<Steering>> {
    let umem = switch.umem(0).context("the switch has a worker")?.clone();
    let mut steerings = Vec::new();
    for (number, name) in PORTS.into_iter().enumerate() {
        let index = PortIndex(u16::try_from(number)?);
        let mut steering = Steering::everything(name, AttachPreference::NativeThenGeneric)?;
        let queue = AfXdpQueue::open(AfXdpOptions::new(index, name, 0, steering.mode()), &umem)?;
        steering.insert_socket(0, queue.socket().context("an open queue has a socket")?)?;
        let queue: Box<dyn PortQueue> = Box::new(queue);
        ensure!(queue.port() == index, "the queue is of another port");
        switch.attach(index, vec![Some(queue)])?;
        steerings.push(steering);
    }
    Ok(steerings)
}
