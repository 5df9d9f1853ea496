//! The other end, whatever it is: guests in VLAN 1 (`f1`), in VLAN 10 (`f10`), at a trunk (`ft`) and at a port of service
//! VLAN 40 (`fq`).

use std::time::Duration;

use millrace_control::kernel::{LinkChange, Netlink};
use millrace_engine::counters::WorkerCounters;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::tap::{TapDevice, TapQueue};

/// Names of the guests.
pub(crate) const GUESTS: [&str; 4] = ["f1", "f10", "ft", "fq"];

/// A switch with guests.
pub(crate) trait Far {
    /// Sends a frame from a guest.
    fn send(&mut self, guest: &str, bytes: &[u8]);
    /// What the guests got since they were last asked.
    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)>;
    /// Whether it has VLANs; without them it has the guest `f1`, and `ft` in the tunnels' VLANs.
    fn has_vlans(&self) -> bool {
        true
    }
    /// Whether it puts service tags around frames (IEEE 802.1ad).
    fn has_service_tags(&self) -> bool {
        true
    }
    /// Whether what leaves a tunnel takes ECT(1) over from the outer header, as RFC 6040 has it and RFC 3168 had not.
    fn hands_ect1_over(&self) -> bool {
        true
    }
    /// Longest time that a frame may take.
    fn patience(&self) -> Duration {
        Duration::from_secs(3)
    }
}

/// TAPs that are plugged into a switch of the kernel or of Open vSwitch, and whose other end the test holds.
pub(crate) struct TapGuests {
    memory: FrameMemory,
    counters: WorkerCounters,
    names: Vec<&'static str>,
    queues: Vec<TapQueue>,
}

impl TapGuests {
    /// Makes the TAPs in a namespace, all up.
    pub(crate) fn create(namespace: &NamespaceHandle, names: &[&'static str]) -> Self {
        let make = |(number, name): (usize, &&str)| {
            let device = TapDevice::create_in_namespace(namespace, name, 1).expect("TAP");
            let mut netlink = Netlink::open_in(namespace).expect("netlink");
            netlink.change_link(name, &LinkChange::up()).expect("up");
            device.into_queues(PortIndex(number as u16)).remove(0)
        };
        let queues = names.iter().enumerate().map(make).collect();
        let memory = FrameMemory::new(FrameMemoryLayout { head_frames: 1024, big_buffers: 16 }).expect("memory");
        Self { memory, counters: WorkerCounters::default(), names: names.to_vec(), queues }
    }

    pub(crate) fn send(&mut self, guest: &str, bytes: &[u8]) {
        let at = self.names.iter().position(|name| *name == guest).expect("a guest");
        let mut packets = vec![self.memory.packet_from(bytes).expect("a frame")];
        self.queues[at].transmit(&mut self.memory, &mut packets, &self.counters);
        assert!(packets.is_empty(), "a TAP takes a frame");
    }

    pub(crate) fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let mut all = Vec::new();
        for (name, queue) in self.names.iter().zip(&mut self.queues) {
            let mut vector = Vec::with_capacity(64);
            queue.receive(&mut self.memory, &mut vector);
            for packet in vector {
                all.push((*name, self.memory.parts(&packet).flatten().copied().collect()));
                self.memory.release(packet);
            }
        }
        all
    }
}
