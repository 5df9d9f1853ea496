//! What goes wrong: links, watches, the store, agents, clocks. Each fault has an end; [`heal`] ends them all.

use std::time::Duration;

use millrace_control::observe::KINDS;
use millrace_tests::cluster::uplink_mac;

use crate::actions::Action;
use crate::mutation::Mutation;
use crate::network::Weather;
use crate::store::WATCH_LAG;
use crate::world::World;

/// How a fault ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Cut(usize, usize),
    Isolation(usize),
    Storm,
    Outage(usize),
    LostAnswers,
    Lag,
    Down(usize),
    ForgottenPaths(usize),
}

/// One fault, perhaps.
pub(crate) fn strike(world: &mut World) {
    let node = world.random.below(world.agents.len());
    match world.random.below(180) {
        0 => cut(world, node),
        1 => isolate(world, node),
        2 => storm(world),
        3 | 4 => outage(world, node),
        5 if world.random.below(3) == 0 => {
            world.note("store away from all", "");
            (0..world.agents.len()).for_each(|node| set_away(world, node));
        }
        6..=8 => break_watches(world, node),
        9 => {
            world.note("answers of the store lost", "");
            world.store.lose_answers(300);
            world.later(60, Action::End(Ending::LostAnswers));
        }
        10 => {
            world.note("watches slow", "");
            world.store.set_lag(5 * WATCH_LAG);
            world.later(40, Action::End(Ending::Lag));
        }
        11 | 12 => crash(world, node),
        13 | 14 => jump(world, node),
        15 => forget_paths(world, node),
        _ => {}
    }
}

fn another(world: &mut World, node: usize) -> usize {
    (node + 1 + world.random.below(world.agents.len() - 1)) % world.agents.len()
}

fn cut(world: &mut World, node: usize) {
    let other = another(world, node);
    world.note("link cut one way", &format!("n{node} to n{other}"));
    world.network.cut(node, other);
    world.later(60, Action::End(Ending::Cut(node, other)));
}

fn isolate(world: &mut World, node: usize) {
    world.note("node partitioned", &format!("n{node}"));
    for other in (0..world.agents.len()).filter(|other| *other != node) {
        world.network.cut(node, other);
        world.network.cut(other, node);
    }
    world.later(60, Action::End(Ending::Isolation(node)));
}

fn storm(world: &mut World) {
    let loss = 50 + world.random.below(300);
    let (delay, repeats) = (2 + world.random.below(20), world.random.below(100));
    world.note("links bad", &format!("loss {loss} delay {delay} repeats {repeats}"));
    world.network.weather = Weather { loss, repeats, delay };
    world.later(80, Action::End(Ending::Storm));
}

fn set_away(world: &mut World, node: usize) {
    world.store.set_away(node, true);
    world.later(80, Action::End(Ending::Outage(node)));
}

fn outage(world: &mut World, node: usize) {
    world.note("store away", &format!("from n{node}"));
    set_away(world, node);
}

fn break_watches(world: &mut World, node: usize) {
    let kind = world.random.below(KINDS.len());
    world.note("watch broken", &format!("n{node} {}", KINDS[kind].kind));
    world.store.break_watch(node, kind);
}

/// The agent of a node ends at once, and starts again later.
pub(crate) fn crash(world: &mut World, node: usize) {
    if world.agents[node].running.is_none() {
        return;
    }
    world.note("agent killed", &format!("n{node}"));
    world.count_denials(node);
    let forget = world.mutation == Mutation::ForgottenConnections;
    let World { agents, store, .. } = world;
    agents[node].crash(store, forget);
    world.later(40, Action::End(Ending::Down(node)));
}

/// A machine stood still and its clock did not.
fn jump(world: &mut World, node: usize) {
    let seconds = 1 + world.random.below(60) as u64;
    world.note("clock jumped", &format!("n{node} {seconds} s"));
    world.agents[node].advance(Duration::from_secs(seconds));
    world.excuse_datagrams(node);
}

fn forget_paths(world: &mut World, node: usize) {
    world.note("neighbours forgotten", &format!("n{node}"));
    world.agents[node].tell_underlay(Vec::new());
    world.changed.insert(node);
    world.later(30, Action::End(Ending::ForgottenPaths(node)));
}

/// Ends a fault.
pub(crate) fn end(world: &mut World, ending: Ending) {
    match ending {
        Ending::Cut(from, to) => world.network.mend(from, to),
        Ending::Isolation(node) => {
            for other in 0..world.agents.len() {
                world.network.mend(node, other);
                world.network.mend(other, node);
            }
        }
        Ending::Storm => world.network.weather = Weather::FAIR,
        Ending::Outage(node) => {
            world.store.set_away(node, false);
            // After a while the server has forgotten the versions.
            if world.random.below(2) == 0 {
                (0..KINDS.len()).for_each(|kind| world.store.break_watch(node, kind));
            }
        }
        Ending::LostAnswers => world.store.lose_answers(0),
        Ending::Lag => world.store.set_lag(WATCH_LAG),
        Ending::Down(node) => {
            if world.agents[node].running.is_none() {
                world.note("agent started", &format!("n{node}"));
                world.agents[node].start();
            }
        }
        Ending::ForgottenPaths(node) => {
            let others = (0..world.agents.len()).filter(|other| *other != node);
            let paths = others.map(|other| (world.agents[other].address, uplink_mac(other as u8 + 1))).collect();
            world.agents[node].tell_underlay(paths);
            world.changed.insert(node);
        }
    }
}

/// Ends all faults at once.
pub(crate) fn heal(world: &mut World) {
    world.calm = true;
    for ending in world.actions.endings() {
        end(world, ending);
    }
    world.network.mend_all();
    world.log.note(world.now, "all faults are over");
}
