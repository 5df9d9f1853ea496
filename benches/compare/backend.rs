//! A backend: what stands between pods, and how it is told of Services.

use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::Kernel;
use crate::millrace::Millrace;
use crate::openvswitch::OpenVSwitch;
use crate::program::is_installed;
use crate::services::Services;
use crate::site::{Ends, Site};

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// This switch: TAP pods, the uplink by the port it chooses itself.
    Millrace,
    /// This switch, the uplink by AF_XDP.
    MillraceAfXdp,
    /// Linux bridge, VXLAN in flannel's layout, Services by nftables as kube-proxy writes them.
    Nftables,
    /// The same with Services by iptables.
    Iptables,
    /// Open vSwitch in user space with AF_XDP ports, one polling thread a node.
    OvsAfxdp,
    /// Open vSwitch in user space with packet sockets.
    OvsSystem,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Millrace => "millrace",
            Kind::MillraceAfXdp => "millrace-af-xdp",
            Kind::Nftables => "nftables",
            Kind::Iptables => "iptables",
            Kind::OvsAfxdp => "ovs-afxdp",
            Kind::OvsSystem => "ovs-system",
        }
    }

    /// What must be installed for it, if something is missing.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let (program, package) = match self {
            Kind::Millrace | Kind::MillraceAfXdp => return None,
            Kind::Nftables => ("nft", "nftables iproute2"),
            Kind::Iptables => ("iptables-restore", "iptables iproute2"),
            Kind::OvsAfxdp | Kind::OvsSystem => ("ovs-vswitchd", "openvswitch-switch iproute2"),
        };
        (!is_installed(program)).then_some(package)
    }
}

/// What each kind does its own way.
pub(crate) trait Backend {
    /// Its namespaces.
    fn site(&self) -> &Site;
    /// Its pods.
    fn ends(&self) -> &Ends;
    /// Brings these Services into force in place of those before.
    fn program(&mut self, services: Services) -> anyhow::Result<Duration>;
    /// Its processes; none for the kernel.
    fn processes(&self) -> Vec<Pid>;
}

/// Builds one.
pub(crate) fn build(kind: Kind) -> anyhow::Result<Box<dyn Backend>> {
    Ok(match kind {
        Kind::Millrace | Kind::MillraceAfXdp => Box::new(Millrace::build(kind)?),
        Kind::Nftables | Kind::Iptables => Box::new(Kernel::build(kind)?),
        Kind::OvsAfxdp | Kind::OvsSystem => Box::new(OpenVSwitch::build(kind)?),
    })
}

/// Stops its processes while another backend is measured, or lets them go on.
pub(crate) fn pause(backend: &dyn Backend, paused: bool) {
    let signal = if paused { Signal::STOP } else { Signal::CONT };
    for process in backend.processes() {
        // One that has ended shows in the measurement.
        let _ = kill_process(process, signal);
    }
}
