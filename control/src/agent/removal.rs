//! What agents leave in the kernel on purpose, for the next agent, taken away for good.
//!
//! Found by the record of attachments, by names and marks that nobody else has, and by the record of reserved ports, so that
//! neither an agent nor objects are needed. Each step stands alone: what fails is told and the others are done all the same.
//! May be repeated. No agent may be running. What it does not find are TAPs of `Port` objects and the promiscuous mode of
//! their interfaces: those go with their objects, while an agent runs.

use std::path::Path;

use crate::cni_server::{Attachment, Attachments, PodDevice};
use crate::kernel::{KernelError, NamespaceHandle, Netlink};

use super::outside::{self, RECORD};
use super::pod_device::{far_end, is_far_end};
use super::{ATTACHMENTS_FILE, HOST_INTERFACE, host_port};

/// A thing that was to go.
#[derive(Debug)]
pub struct Step {
    /// What it is.
    pub what: String,
    /// Whether it was there, or why it stays.
    pub outcome: anyhow::Result<bool>,
}

impl Step {
    /// A step that is done.
    pub fn new<Error: Into<anyhow::Error>>(what: impl Into<String>, outcome: Result<bool, Error>) -> Step {
        Step { what: what.into(), outcome: outcome.map_err(Into::into) }
    }
}

/// Takes all of it away: what of pods, of the host's own port, of ports and neighbours is left in the calling thread's
/// namespace and in those of pods.
#[must_use]
pub fn remove_from_kernel(state_directory: &Path) -> Vec<Step> {
    let mut steps = remove_pods(&state_directory.join(ATTACHMENTS_FILE));
    steps.push(Step::new("ends of pods' veth pairs without a record", remove_far_ends()));
    steps.push(Step::new(
        format!("{HOST_INTERFACE} with its addresses and routes, and rules for ports of the host"),
        host_port::remove(),
    ));
    steps.push(Step::new("reserved ports", outside::give_back_recorded(&state_directory.join(RECORD))));
    steps.push(Step::new("neighbours kept fresh", forget_neighbours()));
    steps
}

fn remove_pods(record: &Path) -> Vec<Step> {
    let what = || format!("interfaces of pods by {}", record.display());
    match Attachments::load(record) {
        Ok((attachments, None)) => attachments.all().iter().map(remove_pod).collect(),
        Ok((_, Some(problem))) => vec![Step::new(what(), Err(anyhow::anyhow!(problem.message)))],
        Err(error) => vec![Step::new(what(), Err(error))],
    }
}

fn remove_pod(attachment: &Attachment) -> Step {
    let interface = &attachment.key.interface;
    let what = match &attachment.pod {
        Some(pod) => format!("{interface} of pod {}/{}", pod.namespace, pod.name),
        None => format!("{interface} of container {}", attachment.key.container_id),
    };
    let far = Netlink::open().and_then(|mut netlink| netlink.delete_link(&far_end(&attachment.key)));
    let tap = remove_tap(attachment);
    Step::new(what, far.and_then(|far| Ok(tap? || far)))
}

/// By netlink, so that neither `/dev/net/tun` nor a module is needed. What is no TAP is somebody else's.
fn remove_tap(attachment: &Attachment) -> Result<bool, KernelError> {
    if !attachment.namespace.is_there() {
        return Ok(false);
    }
    let namespace = NamespaceHandle::recorded(attachment.namespace.path.clone(), attachment.namespace.inode);
    let mut netlink = Netlink::open_in(&namespace)?;
    let interface = &attachment.key.interface;
    let is_tap =
        netlink.link(interface)?.is_some_and(|link| link.kind.as_deref() == Some(PodDevice::Tap.kernel_kind()));
    if is_tap { netlink.delete_link(interface) } else { Ok(false) }
}

/// Those whose record is lost: nobody else has links of such names.
fn remove_far_ends() -> Result<bool, KernelError> {
    let mut netlink = Netlink::open()?;
    let left: Vec<String> = netlink.links()?.into_iter().filter(is_far_end).map(|link| link.name).collect();
    left.iter().map(|name| netlink.delete_link(name)).try_fold(false, |any, deleted| Ok(deleted? || any))
}

fn forget_neighbours() -> Result<bool, KernelError> {
    Ok(Netlink::open()?.forget_managed_neighbours()? > 0)
}
