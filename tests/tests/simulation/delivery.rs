//! Each packet that leaves a node or reaches a pod, held against what may be.

use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{checksums_valid, describe};
use millrace_tests::policies::Flow;

use crate::invariants::{Invariant, Violation};
use crate::oracle::{self, Question};
use crate::tenancy::NETWORKS;
use crate::traffic::PROBE;
use crate::wire::{Label, Seen, tunnelled};
use crate::world::World;

/// A frame leaves a node: to which one.
pub(crate) fn departs(world: &mut World, number: usize, frame: &WireFrame) -> Result<usize, Violation> {
    let words = || format!("n{number} sends {}", describe(&frame.bytes));
    if let Err(error) = checksums_valid(&frame.bytes) {
        return Violation::of(Invariant::Delivery, format!("{}: {error}", words()));
    }
    let to = world.agents.iter().position(|agent| agent.uplink_mac() == Mac::read(&frame.bytes));
    let Some(to) = to.filter(|to| *to != number) else {
        return Violation::of(Invariant::Delivery, format!("to nobody: {}", words()));
    };
    let Some((vni, inner)) = tunnelled(&frame.bytes) else {
        return Violation::of(Invariant::Delivery, format!("not in a tunnel: {}", words()));
    };
    let Some((seen, label)) = Seen::read(inner).and_then(|seen| Some((seen, seen.label?))) else { return Ok(to) };
    if vni != NETWORKS[usize::from(label.network)].vni {
        return Violation::of(Invariant::Tenants, format!("of {label:?} {}", words()));
    }
    judge(world, number, &seen, label, &words())?;
    Ok(to)
}

/// By which flow a packet may pass; `None` where nothing is judged or known.
fn question(world: &World, seen: &Seen, label: Label) -> Option<Question> {
    let network = usize::from(label.network);
    if !label.reply {
        let (protocol, port) = (seen.protocol_name(), seen.ports[1]);
        let flow = Flow { source: seen.source, destination: seen.destination, protocol, port };
        return Some(Question { network, flow, answer: None });
    }
    let conversation = world.traffic.conversations.get(&label.conversation)?;
    let (flow, answer) = (conversation.flow(label.from)?, conversation.answer_flow(label.from));
    Some(Question { network, flow, answer })
}

fn judge(world: &mut World, number: usize, seen: &Seen, label: Label, words: &str) -> Result<(), Violation> {
    let Some(question) = question(world, seen, label) else { return Ok(()) };
    world.figures.questions += 1;
    oracle::lawful(world.agents[number].views(), question).or_else(|said| {
        let network = World::network_name(question.network);
        Violation::of(Invariant::Policy, format!("{words}: {} in {network}: {said}", question.flow))
    })
}

/// A frame reaches a pod.
pub(crate) fn arrives(world: &mut World, number: usize, pod: u32, frame: &WireFrame) -> Result<(), Violation> {
    world.figures.deliveries += 1;
    let words = || format!("pod {pod} of n{number} got {}", describe(&frame.bytes));
    let attachment = world.agents[number].attachments[&pod].clone();
    let Some(seen) = Seen::read(&frame.bytes) else { return Violation::of(Invariant::Delivery, words()) };
    if seen.receiver != attachment.mac || !attachment.addresses.contains(&seen.destination) {
        return Violation::of(Invariant::Delivery, format!("not its own: {}", words()));
    }
    // Errors and resets that the switch sends itself have no label; they concern the pod's own packets.
    let Some(label) = seen.label else { return Ok(()) };
    if usize::from(label.network) != attachment.network {
        return Violation::of(Invariant::Tenants, format!("of {label:?}: {}", words()));
    }
    let sent_to_another = label.to != u32::MAX && label.to != pod;
    if sent_to_another && world.pods.get(&label.to).is_some_and(|other| is_plugged(world, label.to, other.node)) {
        return Violation::of(Invariant::Delivery, format!("of {label:?}: {}", words()));
    }
    if label.from != pod {
        let words = words();
        judge(world, number, &seen, label, &words)?;
    }
    if sent_to_another {
        return Ok(());
    }
    if label.conversation & PROBE != 0 {
        world.traffic.probed.insert((label.conversation, pod));
        return Ok(());
    }
    if label.reply { answer(world, seen, label, &words()) } else { request(world, pod, seen, label, &words()) }
}

fn is_plugged(world: &World, pod: u32, node: usize) -> bool {
    world.agents[node].attachments.contains_key(&pod)
}

fn request(world: &mut World, pod: u32, seen: Seen, label: Label, words: &str) -> Result<(), Violation> {
    let Some(conversation) = world.traffic.conversations.get_mut(&label.conversation) else { return Ok(()) };
    if conversation.is_kept() && conversation.server != Some(pod) {
        let what = format!("it was with {:?}: {words}: {conversation:?}", conversation.server);
        return Violation::of(Invariant::Connections, what);
    }
    let by_service = label.to == u32::MAX;
    if by_service && !conversation.endpoints.contains(&seen.destination) {
        let what = format!("no endpoint of the Service, which has {:?}: {words}", conversation.endpoints);
        return Violation::of(Invariant::Delivery, what);
    }
    conversation.served.insert(pod, (seen.destination, seen.ports[1]));
    world.asked(pod, seen);
    Ok(())
}

fn answer(world: &mut World, seen: Seen, label: Label, words: &str) -> Result<(), Violation> {
    let Some(conversation) = world.traffic.conversations.get(&label.conversation) else { return Ok(()) };
    let from = (seen.source, seen.ports[0]);
    if from != conversation.dialed {
        if conversation.is_kept() && conversation.server == Some(label.from) {
            let what = format!("the answer is not from {:?}: {words}", conversation.dialed);
            return Violation::of(Invariant::Connections, what);
        }
        return Ok(());
    }
    world.answered(label.conversation, label);
    Ok(())
}
