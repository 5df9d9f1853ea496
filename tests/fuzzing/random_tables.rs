//! Tables that the input chooses: frames through the whole slow path, a warm cache beside a fresh node, policies beside their
//! oracle.

use std::cell::RefCell;
use std::time::Duration;

use millrace_engine::clock::{Clock, ManualClock};
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::parse::parse;
use millrace_engine::packet::{FrameMemoryLayout, PortIndex};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::slow_path::{Arrival, decide};
use millrace_engine::switch::SwitchOptions;
use millrace_engine::testing::describe;
use millrace_engine::testing::node::Node;

use super::{frame_of, packets};
use crate::changing_world::{World, fresh_with, outputs, ports};
use crate::policies::judge::Judge;
use crate::policies::oracle;
use crate::policies::random_cluster::RandomCluster;
use crate::random::Random;

/// Changes of a world before frames come; later bytes choose nothing.
const CHANGES: usize = 24;
/// Flows compared after each change.
const FLOWS: usize = 12;
/// Flows that a policy is asked about.
const JUDGED: usize = 8;

thread_local! {
    static JUDGE: RefCell<Judge> = RefCell::new(Judge::new());
}

/// Small, since each input has a node of its own: what one input did is nothing to the next.
fn options(workers: usize) -> SwitchOptions {
    SwitchOptions {
        frame_memory: FrameMemoryLayout { head_frames: 512, big_buffers: 4 },
        flows: FlowCacheLayout { ipv4: 64, ipv6: 64 },
        connections: 64,
        ..Node::options(workers)
    }
}

/// One part of the input behind its length in two bytes chooses tables; frames follow, each behind a byte for its port
/// and its length in two bytes. Port 255 lets time pass.
///
/// # Panics
/// If a decision is not the same twice, or the switch breaks a promise.
pub fn slow_path(input: &[u8]) {
    let Some((choices, mut frames)) = frame_of(input) else { return };
    let mut random = Random::chosen_by(choices);
    let world = world(&mut random);
    let mut node = fresh_with(world.tables(), options(2));
    world.speak(&mut node);
    let all: Vec<u16> = ports().collect();
    while let [port, rest @ ..] = frames
        && let Some((frame, behind)) = frame_of(rest)
    {
        frames = behind;
        if *port == u8::MAX {
            node.clock.advance(Duration::from_millis(700));
            node.finish_sweeps();
        }
        let port = all[usize::from(*port) % all.len()];
        decided_twice(&node, port, frame);
        node.inject(port, WireFrame::plain(frame.to_vec()));
    }
    drop(outputs(&node));
    assert_eq!(node.switch.lost_frames(), 0, "frame memory is missing");
}

fn world(random: &mut Random) -> World {
    let mut world = World::new(random);
    for _ in 0..CHANGES {
        if random.is_over() {
            break;
        }
        world.change(random);
    }
    world
}

/// A decision teaches nothing: asked twice, the slow path says the same, in the same words.
fn decided_twice(node: &Node, port: u16, frame: &[u8]) {
    let Ok(headers) = parse(frame, frame.len()) else { return };
    let (tables, now) = (node.switch.tables(), Clock::Manual(node.clock.clone()).now());
    let arrival = Arrival { port: PortIndex(port), tunnel: None, frame, headers: &headers, gso: None };
    let [first, second] = [(); 2].map(|()| decide(&tables, node.switch.state(), &arrival, now));
    assert_eq!(format!("{:?}", first.verdict), format!("{:?}", second.verdict));
    assert_eq!(first.trail.to_string(), second.trail.to_string());
}

/// A world, changes of it, and after each some flows: a node that was there all the time forwards as a fresh one.
///
/// # Panics
/// If it does not.
pub fn cached(input: &[u8]) {
    let mut random = Random::chosen_by(input);
    let mut world = World::new(&mut random);
    let mut warm = fresh_with(world.tables(), options(1));
    world.speak(&mut warm);
    for _ in 0..CHANGES / 4 {
        let asked: Vec<usize> = (0..FLOWS).map(|_| random.below(1 << 16)).collect();
        let flows = |world: &World| {
            let mut all = world.flows();
            let mut picked: Vec<usize> = asked.iter().map(|number| number % all.len()).collect();
            picked.sort_unstable();
            picked.dedup();
            picked.into_iter().rev().map(|at| all.swap_remove(at)).collect::<Vec<_>>()
        };
        for (port, packet) in flows(&world).into_iter().chain(flows(&world)) {
            warm.inject(port, packet);
        }
        drop(outputs(&warm));
        let what = world.change(&mut random);
        warm.switch.publish(world.tables());
        world.speak(&mut warm);
        warm.finish_sweeps();
        // ICMP errors have a budget a second.
        warm.clock.advance(Duration::from_secs(2));
        let mut cold = fresh_with(world.tables(), options(1));
        world.speak(&mut cold);
        for (port, packet) in flows(&world) {
            same(&mut warm, &mut cold, port, &packet, what);
        }
        if random.is_over() {
            break;
        }
    }
    assert_eq!(warm.switch.lost_frames(), 0);
}

fn same(warm: &mut Node, cold: &mut Node, port: u16, packet: &WireFrame, what: &str) {
    warm.inject(port, packet.clone());
    cold.inject(port, packet.clone());
    let (found, right) = (outputs(warm), outputs(cold));
    let told = |list: &[(u16, WireFrame)]| -> Vec<String> {
        list.iter().map(|(port, frame)| format!("port {port}: {}", describe(&frame.bytes))).collect()
    };
    assert!(
        found == right,
        "{what}: {} at port {port}\n cached {:#?}\n  fresh {:#?}\n trail {}",
        describe(&packet.bytes),
        told(&found),
        told(&right),
        cold.explain(port, packet)
    );
    for node in [warm, cold] {
        node.clock.advance(Duration::from_millis(20));
    }
}

/// A cluster with policies, changes of it, and after each some flows: the engine says what the oracle says, and a planner
/// that followed has what one has that sees the cluster for the first time.
///
/// # Panics
/// If they disagree.
pub fn policy(input: &[u8]) {
    JUDGE.with_borrow_mut(|judge| {
        let mut random = Random::chosen_by(input);
        let mut cluster = RandomCluster::new(&mut random);
        judge.forget();
        cluster.objects.iter().for_each(|object| judge.apply(object));
        for _ in 0..CHANGES / 4 {
            assert!(
                judge.settle(&cluster.view, true),
                "a planner that followed differs from one that sees all at once"
            );
            for _ in 0..JUDGED {
                let Some(flow) = cluster.flow(&mut random) else { continue };
                let (expected, found) = (oracle::allowed(&cluster.objects, &cluster.view, flow), judge.allowed(flow));
                assert_eq!(
                    expected.is_ok(),
                    found.is_ok(),
                    "{flow}: the oracle says {expected:?}, the engine {found:?}"
                );
            }
            if random.is_over() {
                break;
            }
            let told = cluster.change(&mut random);
            told.applied.iter().for_each(|object| judge.apply(object));
            told.deleted.iter().for_each(|object| judge.delete(object));
        }
    });
}

/// Inputs of [`slow_path`]: worlds with packets of every kind at every port.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for seed in 1..5 {
        let mut random = Random::new(seed);
        let world = World::new(&mut Random::chosen_by(&random.clone().bytes(90)));
        let mut input: Vec<u8> = super::with_length(&random.bytes(90)).collect();
        for (port, frame) in world.flows().into_iter().step_by(11) {
            let place = ports().position(|known| known == port).unwrap_or_default() as u8;
            input.push(place);
            input.extend(super::with_length(&frame.bytes[..frame.bytes.len().min(200)]));
        }
        seeds.push((format!("world-{seed}"), input));
    }
    for (name, packet) in packets::short_packets() {
        let mut input = vec![0, 4, 1, 2, 3, 4];
        for port in [0, 2, 7, 8] {
            input.push(port);
            input.extend(super::with_length(&packet));
        }
        seeds.push((name, input));
    }
    seeds
}

/// Inputs of [`cached`] and [`policy`]: bytes that choose everything.
#[must_use]
pub fn choices() -> Vec<(String, Vec<u8>)> {
    (1..9).map(|seed| (format!("choices-{seed}"), Random::new(seed).bytes(100 + 100 * seed as usize))).collect()
}
