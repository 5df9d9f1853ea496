//! Taking an interface for the switch: by AF_XDP, by packet sockets, or by UDP sockets for the tunnels and packet sockets
//! for all else.
//!
//! What an agent chooses for itself: AF_XDP where the driver moves frames without a copy. Where it copies, UDP sockets
//! carry about twice as much between pods (one call sends what AF_XDP sends as forty frames), for some twenty
//! microseconds of a sleeping worker's time; `docs/benchmarking.md` has both. Packet sockets alone come next, where the
//! tunnels' port is taken; AF_XDP in the kernel's stack last. A bond or a team goes by sockets at once: an XDP program on
//! it runs on its members, whose queues no socket of the bond is bound to, so that what the program redirects would be
//! lost.

use std::fmt::Display;
use std::num::NonZeroU16;
use std::os::fd::AsFd;

use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachPreference, Steering, SteeringError, SteeringRules, Umem, admit_by,
};
use millrace_engine::port::handover::HandedKind;
use millrace_engine::port::packet_socket::PacketSocket;
use millrace_engine::port::udp::UdpSockets;

use super::super::takeover::{Inherited, InheritedPort};
use super::problem::UplinkProblem;
use crate::cluster::{UplinkPort, UplinkPortKind};
use crate::kernel::Link;
use crate::kernel::capabilities::{self, Capability};

/// An interface that was taken.
pub(super) struct Taken {
    pub(super) queues: Vec<Option<Box<dyn PortQueue>>>,
    pub(super) steering: Steering,
    /// Whether tunnels come in by sockets of their own.
    pub(super) has_tunnel_sockets: bool,
    /// Whether the driver moves the frames of every queue without a copy.
    is_zero_copy: bool,
    /// Why it was taken so, where that was not said by its object.
    pub(super) chosen: Option<String>,
    /// What about it is not as it should be.
    pub(super) problem: Option<UplinkProblem>,
}

/// Takes `link` for `port` in the way that `by` names; `umems` are of the workers, one each.
pub(super) fn take(
    by: UplinkPort,
    link: &Link,
    port: PortIndex,
    vxlan_port: u16,
    umems: &[Umem],
) -> Result<Taken, UplinkProblem> {
    let busy_poll_budget = by.busy_poll_budget;
    let taking = Taking { interface: &link.name, mtu: link.mtu, port, vxlan_port, umems, busy_poll_budget };
    match by.kind {
        UplinkPortKind::Udp => taking.by_udp_sockets(),
        UplinkPortKind::AfXdp => taking.by_af_xdp(AttachPreference::default()),
        UplinkPortKind::Packet => taking.by_packet_sockets(),
        UplinkPortKind::Automatic if has_members(link) => {
            taking.by_sockets().map(|taken| taken.since("an XDP program cannot serve an interface of several"))
        }
        UplinkPortKind::Automatic => taking.by_what_is_best(),
    }
}

/// Takes `link` with the sockets of the agent before. Its program decides what comes in until it is gone; then that of this
/// agent, which knows by then what is ours.
pub(super) fn inherit(inherited: InheritedPort, link: &Link, all: &Inherited) -> Result<Taken, UplinkProblem> {
    let refused = |said: String| UplinkProblem::Refused { interface: link.name.clone(), said };
    let steering = Steering::for_packet_sockets(&link.name, SteeringRules::default());
    let steering = steering.map_err(|error| refused(error.to_string()))?;
    let filter = steering.filter().map_err(|error| refused(error.to_string()))?;
    let sockets = inherited.sockets;
    if let Some(filter) = filter {
        all.later(move || {
            // The kernel has let us set the same filter on the same sockets before.
            sockets.iter().for_each(|socket| drop(admit_by(filter.as_fd(), socket.as_fd())));
        });
    }
    let has_tunnel_sockets = matches!(inherited.kind, HandedKind::Udp { .. });
    let chosen = Some("taken over from the agent before".to_owned());
    Ok(Taken { queues: inherited.queues, steering, has_tunnel_sockets, is_zero_copy: false, chosen, problem: None })
}

fn has_members(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("bond" | "team"))
}

impl Taken {
    fn instead_of(self, interface: &str, refused: UplinkProblem) -> Self {
        let problem = UplinkProblem::Sockets { interface: interface.to_owned(), instead: Box::new(refused) };
        Self { problem: Some(problem), ..self }
    }

    fn since(self, why: impl Display) -> Self {
        Self { chosen: Some(format!("chosen since {why}")), ..self }
    }

    /// First the program, so that the kernel gets its packets again, then the sockets.
    fn give_back(self) {
        drop(self.steering);
        drop(self.queues);
    }
}

struct Taking<'a> {
    interface: &'a str,
    mtu: u32,
    port: PortIndex,
    vxlan_port: u16,
    umems: &'a [Umem],
    busy_poll_budget: Option<NonZeroU16>,
}

impl Taking<'_> {
    fn by_what_is_best(&self) -> Result<Taken, UplinkProblem> {
        match self.by_af_xdp(AttachPreference::Native) {
            Ok(taken) if taken.is_zero_copy => Ok(taken.since("AF_XDP moves frames without a copy here")),
            Ok(copying) => {
                copying.give_back();
                self.by_udp_sockets().map(|taken| taken.since("AF_XDP would copy every frame here")).or_else(
                    |refused| {
                        let taken = self.by_af_xdp(AttachPreference::Native)?;
                        Ok(taken.since(format_args!("UDP sockets cannot have the tunnels: {refused}")))
                    },
                )
            }
            Err(refused) => match self.by_sockets() {
                Ok(taken) => Ok(taken.since("AF_XDP was refused").instead_of(self.interface, refused)),
                Err(_) => self.by_af_xdp(AttachPreference::Generic).map_err(|_| refused),
            },
        }
    }

    fn by_sockets(&self) -> Result<Taken, UplinkProblem> {
        self.by_udp_sockets().or_else(|_| self.by_packet_sockets())
    }

    fn by_af_xdp(&self, preference: AttachPreference) -> Result<Taken, UplinkProblem> {
        let interface = self.interface;
        let (queues, workers) = (receive_queues(interface), self.umems.len());
        if queues > workers {
            return Err(UplinkProblem::Queues { interface: interface.to_owned(), queues, workers });
        }
        let steering = Steering::by_rules(interface, SteeringRules::default(), preference);
        let mut steering = steering.map_err(|error| self.steering_refused("AF_XDP", &error))?;
        let mut boxed: Vec<Option<Box<dyn PortQueue>>> = Vec::new();
        let mut is_zero_copy = true;
        for (number, umem) in self.umems.iter().enumerate().take(queues) {
            let usual = AfXdpOptions::new(self.port, interface, number as u32, steering.mode());
            let options = AfXdpOptions { busy_poll_budget: self.busy_poll_budget, ..usual };
            let queue = AfXdpQueue::open(options, umem).map_err(|error| self.sockets_refused(error.to_string()))?;
            let socket = queue.socket().ok_or_else(|| self.refused("no socket".to_owned()))?;
            let inserted = steering.insert_socket(number as u32, socket);
            inserted.map_err(|error| self.steering_refused("AF_XDP", &error))?;
            is_zero_copy &= queue.is_zero_copy();
            boxed.push(Some(Box::new(queue)));
        }
        Ok(Taken { queues: boxed, steering, has_tunnel_sockets: false, is_zero_copy, chosen: None, problem: None })
    }

    /// Tunnels by UDP sockets; what remains is steered to packet sockets.
    fn by_udp_sockets(&self) -> Result<Taken, UplinkProblem> {
        let opened = UdpSockets::open_group(self.interface, self.mtu, self.vxlan_port, self.umems.len());
        let sockets = opened.map_err(|error| self.udp_refused(&error.to_string()))?;
        let mut plain = self.by_packet_sockets()?;
        let mut queues: Vec<Option<Box<dyn PortQueue>>> = Vec::new();
        for (sockets, plain) in sockets.into_iter().zip(std::mem::take(&mut plain.queues).into_iter().flatten()) {
            let queue = sockets.queue(self.port, plain).map_err(|error| self.refused(error.to_string()))?;
            queues.push(Some(Box::new(queue)));
        }
        Ok(Taken { queues, has_tunnel_sockets: true, ..plain })
    }

    fn udp_refused(&self, said: &str) -> UplinkProblem {
        let needed = [Capability::NetAdmin, Capability::NetRaw];
        self.lacking("UDP sockets", &needed, said).unwrap_or_else(|| self.refused(said.to_owned()))
    }

    /// As many sockets as workers, whatever queues the interface has.
    fn by_packet_sockets(&self) -> Result<Taken, UplinkProblem> {
        const ATTEMPT: &str = "a packet socket";
        let needed = [Capability::Bpf, Capability::NetAdmin, Capability::NetRaw];
        let refused = |said: String| self.lacking(ATTEMPT, &needed, &said).unwrap_or_else(|| self.refused(said));
        let opened = PacketSocket::open_group(self.interface, self.mtu, self.umems.len());
        let sockets = opened.map_err(|error| refused(error.to_string()))?;
        let steering = Steering::for_packet_sockets(self.interface, SteeringRules::default());
        let steering = steering.map_err(|error| self.steering_refused(ATTEMPT, &error))?;
        for socket in &sockets {
            steering.admit_socket(socket.as_fd()).map_err(|error| refused(error.to_string()))?;
        }
        let queue = |socket: &PacketSocket| -> Option<Box<dyn PortQueue>> { Some(Box::new(socket.queue(self.port))) };
        let queues = sockets.iter().map(queue).collect();
        Ok(Taken { queues, steering, has_tunnel_sockets: false, is_zero_copy: false, chosen: None, problem: None })
    }

    fn refused(&self, said: String) -> UplinkProblem {
        UplinkProblem::Refused { interface: self.interface.to_owned(), said }
    }

    fn lacking(&self, attempt: &'static str, needed: &[Capability], said: &str) -> Option<UplinkProblem> {
        let missing = capabilities::missing(needed);
        let (interface, said) = (self.interface.to_owned(), said.to_owned());
        (!missing.is_empty()).then_some(UplinkProblem::Capability { interface, attempt, missing, said })
    }

    fn steering_refused(&self, attempt: &'static str, error: &SteeringError) -> UplinkProblem {
        let said = error.to_string();
        if matches!(error, SteeringError::Occupied { .. }) {
            return UplinkProblem::Occupied { interface: self.interface.to_owned(), said };
        }
        let needed = [Capability::Bpf, Capability::NetAdmin];
        self.lacking(attempt, &needed, &said).unwrap_or_else(|| self.refused(said))
    }

    fn sockets_refused(&self, said: String) -> UplinkProblem {
        if let Some(problem) = self.lacking("AF_XDP", &[Capability::NetRaw], &said) {
            return problem;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let needed = self.umems.iter().map(Umem::bytes).max().unwrap_or(0);
        match limit {
            Some(limit) if limit < needed && !capabilities::missing(&[Capability::IpcLock]).is_empty() => {
                UplinkProblem::LockedMemory { interface: self.interface.to_owned(), limit, needed, said }
            }
            _ => self.refused(said),
        }
    }
}

/// Receive queues of an interface. The directory is of the mount's namespace, so the count comes by ethtool.
fn receive_queues(interface: &str) -> usize {
    millrace_engine::port::af_xdp::receive_queues(interface).unwrap_or(1).max(1)
}
