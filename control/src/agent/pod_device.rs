//! What a pod's interface is made of, and how the switch holds its other end.
//!
//! A TAP by default. A pod that must have a veth gets one end of a pair; the other end stays in the agent's namespace and is
//! held by packet sockets, one for each worker, with units of segments and partial checksums as a TAP has them. Its kernel
//! is kept out of it: a program drops what comes in behind the sockets, and while no agent runs the end has neither
//! ARP nor IPv6, and no route by which a source would be believed. The name of the end follows from the attachment, so
//! that what a cut-short ADD left is found. The pair goes when either end goes, so with the pod's namespace too.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{Withheld, Withholding};
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::packet_socket::{Accept, PacketSocket};
use millrace_engine::port::tap::{TapDevice, TapError, TapQueue};

use super::pods::holder;
use super::shared::SharedSwitch;
use super::takeover::InheritedPort;
use crate::cni_server::{AttachmentKey, CniFailure, NetworkNamespace, PodDevice};
use crate::kernel::{KernelError, Link, LinkChange, Netlink, sysctl};
use crate::stable_hash::hash_64;

type Queues = Vec<Option<Box<dyn PortQueue>>>;

/// The far ends of all pods.
#[derive(Default)]
pub(super) struct PodDevices(Mutex<KeptOut>);

/// What keeps the kernel out of veth ends, by the pod's port.
#[derive(Default)]
struct KeptOut {
    program: Option<Withholding>,
    ends: BTreeMap<PortIndex, Withheld>,
}

impl PodDevices {
    /// Makes the interface in the pod's namespace and gives its queues to the workers. After an error nothing is left.
    pub(super) fn make(
        &self,
        switch: &SharedSwitch,
        device: PodDevice,
        (key, namespace): (&AttachmentKey, &NetworkNamespace),
        port: PortIndex,
        mtu: u32,
    ) -> Result<(), CniFailure> {
        let exists =
            || CniFailure::InterfaceExists { interface: key.interface.clone(), namespace: namespace.path.clone() };
        let queues = match device {
            PodDevice::Tap => {
                let made = TapDevice::create_in_namespace(&handle(namespace), &key.interface, workers(switch));
                let device = made.map_err(|error| match error {
                    TapError::Exists { .. } => exists(),
                    error => system("make the pod's interface", error),
                })?;
                queues_of(device, port)
            }
            PodDevice::Veth => {
                make_pair(key, namespace, mtu).map_err(|error| match error.is_present() {
                    true => exists(),
                    false => system("make the pod's veth pair", error),
                })?;
                self.take_end(switch, key, port).inspect_err(|_| self.undo(device, (key, namespace), port))?
            }
        };
        attach(switch, queues, port).inspect_err(|_| self.undo(device, (key, namespace), port))
    }

    /// Takes back what was just made. If that fails too, the error that led here says more.
    fn undo(&self, device: PodDevice, (key, namespace): (&AttachmentKey, &NetworkNamespace), port: PortIndex) {
        let _ = self.remove(Some(device), (key, Some(namespace)), Some(port));
    }

    /// Takes up the interface that an earlier agent made, by its queues if they were handed over.
    pub(super) fn take_up(
        &self,
        switch: &SharedSwitch,
        device: PodDevice,
        (key, namespace): (&AttachmentKey, &NetworkNamespace),
        port: PortIndex,
        inherited: Option<InheritedPort>,
    ) -> Result<(), CniFailure> {
        let queues = match (device, inherited) {
            (PodDevice::Tap, Some(inherited)) => inherited.queues,
            (PodDevice::Veth, Some(inherited)) => {
                self.keep_out(&far_end(key), port)?;
                inherited.queues
            }
            (PodDevice::Tap, None) => {
                let found = TapDevice::attach_in_namespace(&handle(namespace), &key.interface, workers(switch));
                queues_of(found.map_err(|error| system("take up the pod's interface", error))?, port)
            }
            (PodDevice::Veth, None) => self.take_end(switch, key, port)?,
        };
        attach(switch, queues, port)
    }

    /// Takes the pod's interface away, whose port is detached already; what is missing is done. Without a device, because
    /// ADD was cut short, it may be any.
    pub(super) fn remove(
        &self,
        device: Option<PodDevice>,
        (key, namespace): (&AttachmentKey, Option<&NetworkNamespace>),
        port: Option<PortIndex>,
    ) -> Result<(), CniFailure> {
        // First the pair: as long as it is there, its kernel is kept out.
        let pair = match device {
            Some(PodDevice::Tap) => Ok(()),
            Some(PodDevice::Veth) | None => {
                remove_pair(key).map(drop).map_err(|error| system("remove the pod's veth pair", error))
            }
        };
        if let Some(port) = port {
            self.kept_out(|kept| kept.ends.remove(&port));
        }
        if device == Some(PodDevice::Veth) {
            return pair;
        }
        let removed = namespace.map(|namespace| TapDevice::remove_in_namespace(&handle(namespace), &key.interface));
        let tap = match removed {
            // It went with its namespace, a moment ago.
            Some(Err(TapError::Namespace { source, .. })) if source.is_gone() => Ok(()),
            Some(Err(error)) => Err(system("remove the pod's interface", error)),
            Some(Ok(_)) | None => Ok(()),
        };
        pair.and(tap)
    }

    fn take_end(&self, switch: &SharedSwitch, key: &AttachmentKey, port: PortIndex) -> Result<Queues, CniFailure> {
        let (name, count) = (far_end(key), workers(switch));
        let mut netlink = Netlink::open().map_err(|error| system("look at the pod's veth pair", error))?;
        let link = netlink.existing_link(&name).map_err(|error| system("take up the pod's veth pair", error))?;
        let sockets = PacketSocket::open_group(&name, link.mtu, count)
            .map_err(|error| system("open packet sockets on the pod's veth pair", error))?;
        self.keep_out(&name, port)?;
        for socket in &sockets {
            socket.accept(&Accept::Everything).map_err(|error| system("listen on the pod's veth pair", error))?;
        }
        let up = LinkChange { up: Some(true), promiscuous: Some(true), ..LinkChange::default() };
        netlink.change_link(&name, &up).map_err(|error| system("set the pod's veth pair up", error))?;
        let queue = |socket: PacketSocket| Some(Box::new(socket.towards_stack().queue(port)) as Box<dyn PortQueue>);
        Ok(sockets.into_iter().map(queue).collect())
    }

    fn keep_out(&self, name: &str, port: PortIndex) -> Result<(), CniFailure> {
        let failed = |error| {
            let attempt = "keep the host's kernel out of the pod's veth pair (CAP_BPF, CAP_NET_ADMIN, Linux 6.6)";
            CniFailure::system(attempt, error)
        };
        self.kept_out(|kept| {
            if kept.program.is_none() {
                kept.program = Some(Withholding::load().map_err(failed)?);
            }
            let Some(program) = &kept.program else { return Ok(()) };
            let end = program.keep(name).map_err(failed)?;
            kept.ends.insert(port, end);
            Ok(())
        })
    }

    fn kept_out<T>(&self, act: impl FnOnce(&mut KeptOut) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How names of the switch's ends begin.
const FAR_END: &str = "mrp";

/// The switch's end of a pod's veth pair.
pub(super) fn far_end(key: &AttachmentKey) -> String {
    // As long as the name of an interface may be.
    format!("{FAR_END}{:012x}", hash_64(&holder(key)) & 0xffff_ffff_ffff)
}

/// Whether a link has a name as only [`far_end`] gives it, and is of a veth pair.
pub(super) fn is_far_end(link: &Link) -> bool {
    let digits = link.name.strip_prefix(FAR_END).filter(|digits| digits.len() == 12);
    let ours = digits.is_some_and(|digits| digits.chars().all(|digit| digit.is_ascii_hexdigit()));
    ours && link.kind.as_deref() == Some(PodDevice::Veth.kernel_kind())
}

/// A pair whose near end is the host's but has nothing to say.
fn make_pair(key: &AttachmentKey, namespace: &NetworkNamespace, mtu: u32) -> Result<(), KernelError> {
    let name = far_end(key);
    let mut netlink = Netlink::open()?;
    // A pair of an ADD that was cut short: nobody else has a name like this.
    netlink.delete_link(&name)?;
    netlink.create_veth((&name, None), (&key.interface, Some(&handle(namespace))))?;
    let silenced = silence(&mut netlink, &name, mtu);
    if silenced.is_err() {
        let _ = netlink.delete_link(&name);
    }
    silenced
}

fn silence(netlink: &mut Netlink, name: &str, mtu: u32) -> Result<(), KernelError> {
    sysctl::write_own(&[(format!("ipv6/conf/{name}/disable_ipv6"), "1")], true)?;
    // Sources of pods are routed by the host's own port, so that strict means none is believed here.
    sysctl::write_own(&[(format!("ipv4/conf/{name}/rp_filter"), "1")], false)?;
    netlink.change_link(name, &LinkChange { resolves: Some(false), mtu: Some(mtu), ..LinkChange::default() })
}

fn remove_pair(key: &AttachmentKey) -> Result<bool, KernelError> {
    Netlink::open()?.delete_link(&far_end(key))
}

fn queues_of(device: TapDevice, port: PortIndex) -> Queues {
    let boxed = |queue: TapQueue| -> Option<Box<dyn PortQueue>> { Some(Box::new(queue)) };
    device.into_queues(port).into_iter().map(boxed).collect()
}

fn attach(switch: &SharedSwitch, queues: Queues, port: PortIndex) -> Result<(), CniFailure> {
    let attached = switch.with(|switch| switch.attach(port, queues));
    attached.map_err(|error| CniFailure::NotReady(error.to_string()))
}

fn workers(switch: &SharedSwitch) -> usize {
    switch.with(|switch| switch.options().workers)
}

fn handle(namespace: &NetworkNamespace) -> NamespaceHandle {
    NamespaceHandle::recorded(namespace.path.clone(), namespace.inode)
}

fn system(attempt: &str, error: impl std::error::Error + Send + Sync + 'static) -> CniFailure {
    CniFailure::system(attempt, std::io::Error::other(error))
}
