//! After the last fault: within [`BOUND`] everybody who may talk can, nobody else does, and conversations that nothing
//! ended go on.
//!
//! Asked by rounds of probes, each the first packet of a flow of its own. What must come of each is said by the objects
//! in the store as they are then, whatever nodes have been told: a node that is behind for good is found.

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::testing::frame;
use millrace_tests::policies::Flow;

use crate::churn::PORTS;
use crate::invariants::{Invariant, Violation};
use crate::oracle;
use crate::traffic::PROBE;
use crate::view::View;
use crate::wire::Label;
use crate::world::World;

/// Virtual milliseconds from the end of the last fault until all is as the objects say. A watch is told all within 100 ms
/// that were under way slowly and 50 until it is read anew, and what a kubelet and a controller write after that (each up to
/// 20 with 10 between tries, and 20 under way) takes 100 more.
pub(crate) const BOUND: usize = 300;
/// Ticks of a round: a packet and an answer between nodes need three.
const ROUND: usize = 5;
/// Pairs of a round, at most.
const PAIRS: usize = 300;

/// A probe: who sends it to whom, and whether it must arrive.
struct Probe {
    number: u32,
    to: u32,
    words: String,
    allowed: bool,
}

/// Waits for it.
pub(crate) fn reach(world: &mut World) -> Result<(), Violation> {
    let begin = world.now;
    let (mut since, mut wrong) = (None, Vec::new());
    while world.now - begin <= BOUND {
        let now = world.now;
        let before = std::mem::take(&mut wrong);
        wrong = round(world)?;
        match since {
            // Two rounds that are right, one after the other.
            Some(first) if wrong.is_empty() => return finish(world, first - begin),
            _ => since = wrong.is_empty().then_some(now),
        }
        if !wrong.is_empty() && before != wrong {
            world.log.note(now, &format!("not yet: {}", wrong[0]));
        }
    }
    Violation::of(Invariant::Convergence, format!("after {BOUND} ms: {}", wrong.join("\n    ")))
}

/// One round; what is wrong.
fn round(world: &mut World) -> Result<Vec<String>, Violation> {
    let probes = ask(world);
    world.figures.probes += probes.len() as u64;
    for _ in 0..ROUND {
        world.step()?;
    }
    let arrived = std::mem::take(&mut world.traffic.probed);
    let wrong = probes.iter().filter(|probe| arrived.contains(&(probe.number, probe.to)) != probe.allowed);
    // What changed meanwhile is asked again.
    let wrong = wrong.filter(|probe| world.pods.get(&probe.to).is_some_and(|pod| !pod.leaving));
    Ok(wrong.map(|probe| probe.words.clone()).collect())
}

fn ask(world: &mut World) -> Vec<Probe> {
    let objects = world.store.objects();
    let everything = View::of("", &objects);
    let mut views: BTreeMap<usize, View> = BTreeMap::new();
    let plugged: Vec<u32> =
        world.pods.iter().filter(|(_, pod)| pod.told && !pod.leaving).map(|(pod, _)| *pod).collect();
    let mut probes = Vec::new();
    for (from, to) in pairs(world, &plugged) {
        let network = world.pods[&from].network;
        let ipv4 = network > 0 || world.random.below(2) == 0;
        let (Some(source), Some(destination)) = (world.address(from, ipv4), world.address(to, ipv4)) else { continue };
        let port = *world.random.pick(&PORTS);
        let flow = Flow { source, destination, protocol: "UDP", port };
        let mut said = Vec::new();
        for pod in [from, to] {
            let node = world.pods[&pod].node;
            let view = views.entry(node).or_insert_with(|| at_node(world, &everything, node));
            said.extend(oracle::allowed(view, network, flow).err());
        }
        let words = format!(
            "{flow} in {} from pod {from} (n{}) to pod {to} (n{}): denied by {said:?}",
            World::network_name(network),
            world.pods[&from].node,
            world.pods[&to].node,
        );
        let number = probe(world, (from, to), (source, destination), port);
        probes.push(Probe { number, to, words, allowed: said.is_empty() });
    }
    probes
}

/// All pairs of a network, or as many as a round has.
fn pairs(world: &mut World, pods: &[u32]) -> Vec<(u32, u32)> {
    let network = |pod: u32| world.pods[&pod].network;
    let mut pairs = Vec::new();
    if pods.len() * pods.len() <= PAIRS {
        let all = pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to)));
        pairs.extend(all.filter(|(from, to)| from != to && network(*from) == network(*to)));
        return pairs;
    }
    while pairs.len() < PAIRS {
        let (from, to) = (*world.random.pick(pods), *world.random.pick(pods));
        if from != to && world.pods[&from].network == world.pods[&to].network {
            pairs.push((from, to));
        }
    }
    pairs
}

fn at_node(world: &World, everything: &View, node: usize) -> View {
    let mut view = everything.at(&world.agents[node].name);
    for (pod, attachment) in &world.agents[node].attachments {
        view.plug_in(*pod, attachment.network, attachment.plugged.clone());
    }
    view
}

fn probe(world: &mut World, (from, to): (u32, u32), (source, destination): (IpAddr, IpAddr), port: u16) -> u32 {
    world.traffic.next += 1;
    let number = world.traffic.next | PROBE;
    let network = world.pods[&from].network as u8;
    let label = Label { conversation: number, sequence: 0, from, to, network, reply: false };
    let source_port = 10_000 + (world.traffic.next % 50_000) as u16;
    world.send(from, |mac| {
        let built = frame().from(mac, source).to(GATEWAY_MAC, destination).udp().ports(source_port, port);
        built.payload(&label.bytes()).wire()
    });
    number
}

/// All is well by now: conversations go on.
fn finish(world: &mut World, took: usize) -> Result<(), Violation> {
    world.figures.convergence.push(took);
    let kept = world.traffic.conversations.iter().filter(|(_, conversation)| conversation.is_kept());
    let kept: Vec<u32> = kept.map(|(number, _)| *number).collect();
    let asked: Vec<(u32, u32)> = kept.iter().map(|number| (*number, world.request(*number))).collect();
    for _ in 0..ROUND {
        world.step()?;
    }
    for (number, sequence) in asked {
        let conversation = &world.traffic.conversations[&number];
        if conversation.is_kept() && conversation.answered < sequence {
            let what = format!("conversation {number} was cut: {conversation:?}");
            return Violation::of(Invariant::Connections, what);
        }
        world.figures.survived += u64::from(conversation.is_kept());
    }
    world.figures.excused = world.figures.established - world.figures.survived;
    for number in 0..world.agents.len() {
        world.count_denials(number);
    }
    Ok(())
}
