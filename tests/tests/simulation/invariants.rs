//! What must hold at every tick, whatever happens. A broken one ends the run.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::agent::Agent;
use crate::network::Network;

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invariant {
    /// Every frame is accounted for: in switches, on links and between the two.
    FramesConserved,
    /// No delivery against policy.
    Policy,
    /// No delivery to another network, and no tunnel under another identifier.
    Tenants,
    /// A pod gets what was sent to it, or to whoever had its address before, and nothing else.
    Delivery,
    /// No address is given twice.
    Addresses,
    /// Connections go on with the same ends unless objects end them.
    Connections,
    /// Soon after the last fault who may talk can, and who may not cannot.
    Convergence,
    /// Tables can be made of the objects.
    Tables,
}

/// A promise broken.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn of<T>(invariant: Invariant, what: impl Into<String>) -> Result<T, Violation> {
        Err(Violation { invariant, what: what.into() })
    }
}

/// Has a node's switch come to rest, with every frame accounted for.
pub(crate) fn settle(agent: &Agent) -> Result<(), Violation> {
    let Some(node) = &agent.running else { return Ok(()) };
    let settled = catch_unwind(AssertUnwindSafe(|| node.switch().settle()));
    if let Err(panic) = settled {
        let said = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
        return Violation::of(Invariant::FramesConserved, format!("node {}: {said}", agent.name));
    }
    let (given, received) = (agent.injected, agent.received());
    if given != received {
        let what = format!("node {} was given {given} frames and received {received}", agent.name);
        return Violation::of(Invariant::FramesConserved, what);
    }
    let lost = node.switch().switch.lost_frames();
    if lost != 0 {
        return Violation::of(Invariant::FramesConserved, format!("node {} lost {lost} frames", agent.name));
    }
    Ok(())
}

pub(crate) fn links(network: &Network) -> Result<(), Violation> {
    match network.unaccounted() {
        0 => Ok(()),
        count => Violation::of(Invariant::FramesConserved, format!("{count} frames vanished: {:?}", network.ledger)),
    }
}

/// No two pods of a network have one address, wherever they are.
pub(crate) fn addresses(agents: &[Agent]) -> Result<(), Violation> {
    let mut holders: BTreeMap<(usize, IpAddr), u32> = BTreeMap::new();
    for agent in agents {
        for (pod, attachment) in &agent.attachments {
            for address in &attachment.addresses {
                if let Some(other) = holders.insert((attachment.network, *address), *pod) {
                    let what = format!("{address} was given to pods {other} and {pod} (node {})", agent.name);
                    return Violation::of(Invariant::Addresses, what);
                }
            }
        }
    }
    Ok(())
}
