//! What is plugged into a replayed node, at its start and when its objects change.
//!
//! A port keeps its number as long as its name is wanted; what is new gets the next number of its kind that none has had,
//! what is gone is pulled out. So numbers follow from the objects and their changes alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use millrace_engine::limits::SWEEP_STEP;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::{MemoryQueue, MemoryWire};
use millrace_engine::port::pcap::Capture;

use super::node::{FLOWS, ReplayNode, ReplayNodeError, objects_in};
use super::surroundings::{self, Device};
use crate::agent::{FIRST_BRIDGE_PORT, FIRST_POD_PORT};
use crate::reconcile::Input;
use crate::store::{Event, ObjectKey};

impl ReplayNode {
    /// Plugs in what the objects say, and pulls out what they say no more.
    pub(super) fn plug(&mut self, captures: &BTreeMap<String, Capture>) -> Result<(), ReplayNodeError> {
        let (uplinks, devices) = surroundings::uplinks(self.reconciler.cluster(), self.reconciler.node(), captures);
        let uplinks = self.fit(1..FIRST_POD_PORT, uplinks, devices)?;
        self.reconciler.take(Input::Uplinks(uplinks));
        let underlay = surroundings::underlay(self.reconciler.cluster(), self.reconciler.local(), captures);
        self.reconciler.take(Input::Underlay(underlay));
        let outside = surroundings::outside(self.reconciler.cluster(), self.reconciler.local(), captures);
        self.reconciler.take(Input::Outside(outside));
        let (host, device) = surroundings::host(self.reconciler.cluster(), self.reconciler.node(), captures);
        self.fit(0..1, BTreeMap::from([(device.port, ())]), vec![device])?;
        self.reconciler.take(Input::Host(Some(host)));
        let (ports, devices) = surroundings::bridge_ports(self.reconciler.cluster(), self.reconciler.node());
        let ports = self.fit(FIRST_BRIDGE_PORT..u16::MAX, ports, devices)?;
        self.reconciler.take(Input::BridgePorts(ports));
        // The pods' MTU follows from the uplinks.
        self.reconciler.settle(Instant::now());
        let mtu = self.reconciler.publish_state().plan().map_or(surroundings::MTU, |plan| plan.pod_mtu);
        let (pods, devices) = surroundings::pods(self.reconciler.cluster(), self.reconciler.node(), mtu, captures);
        let pods = self.fit(FIRST_POD_PORT..FIRST_BRIDGE_PORT, pods, devices)?;
        self.reconciler.take(Input::Pods(pods));
        Ok(())
    }

    /// Puts the objects of another directory in force, as if somebody had applied them now.
    pub(super) fn change_to(
        &mut self,
        objects: &Path,
        captures: &BTreeMap<String, Capture>,
    ) -> Result<(), ReplayNodeError> {
        let (wanted, unreadable) = objects_in(objects)?;
        self.reconciler.take(Input::Store(unreadable));
        let gone: Vec<ObjectKey> = self.objects.keys().filter(|key| !wanted.contains_key(key)).cloned().collect();
        for key in gone {
            self.reconciler.take(Input::Store(Event::Deleted(key)));
        }
        for (key, object) in &wanted {
            if self.objects.get(key).is_none_or(|known| known.resource_version != object.resource_version) {
                self.reconciler.take(Input::Store(Event::Applied(object.clone())));
            }
        }
        self.objects = wanted;
        self.plug(captures)?;
        self.publish()?;
        // Until no worker keeps a flow by the former objects.
        for _ in 0..2 * FLOWS / SWEEP_STEP + 3 {
            self.switch.with(|switch| switch.turn());
        }
        self.settle();
        Ok(())
    }

    /// Gives ports of one kind their numbers, attaches new ones and detaches those that are gone.
    fn fit<T>(
        &mut self,
        numbers: std::ops::Range<u16>,
        mut wanted: BTreeMap<PortIndex, T>,
        devices: Vec<Device>,
    ) -> Result<BTreeMap<PortIndex, T>, ReplayNodeError> {
        let of_kind = |port: &PortIndex| numbers.contains(&port.0);
        let gone: Vec<PortIndex> = self
            .ports
            .iter()
            .filter(|(port, (name, _))| of_kind(port) && !devices.iter().any(|device| device.name == *name))
            .map(|(port, _)| *port)
            .collect();
        for port in gone {
            self.ports.remove(&port);
            self.switch.with(|switch| switch.detach(port));
        }
        let mut fitted = BTreeMap::new();
        for device in devices {
            let Some(value) = wanted.remove(&device.port) else { continue };
            let port = match self.port(&device.name).filter(of_kind) {
                Some(port) => port,
                None => self.attach(&numbers, device)?,
            };
            fitted.insert(port, value);
        }
        Ok(fitted)
    }

    fn attach(&mut self, numbers: &std::ops::Range<u16>, device: Device) -> Result<PortIndex, ReplayNodeError> {
        let refused = |reason: String| ReplayNodeError::Port { port: device.name.clone(), reason };
        if self.port(&device.name).is_some() {
            return Err(refused("another port has this name".to_owned()));
        }
        let next = self.next_numbers.entry(numbers.start).or_insert(numbers.start);
        if !numbers.contains(next) {
            return Err(refused("there are no more numbers for ports of its kind".to_owned()));
        }
        let port = PortIndex(*next);
        *next += 1;
        let wire = MemoryWire::default();
        let queue = MemoryQueue::new(port, wire.clone(), device.capabilities);
        let attached = self.switch.with(|switch| {
            let workers = switch.options().workers;
            let mut queues: Vec<Option<Box<dyn PortQueue>>> = Vec::new();
            queues.resize_with(workers, || None);
            queues[usize::from(port.0) % workers] = Some(Box::new(queue));
            switch.attach(port, queues)
        });
        attached.map_err(|error| refused(error.to_string()))?;
        self.ports.insert(port, (device.name, wire));
        Ok(port)
    }
}
