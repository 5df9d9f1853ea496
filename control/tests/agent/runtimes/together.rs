//! Both runtimes on one node, and what neither of them may be harmed by.

use super::containerd::Containerd;
use super::podman::{Podman, known_as};
use super::world::{Runtime, World};
use crate::services::{HOST_PORT, PORT};

const MAPPING: (u16, u16) = (HOST_PORT, PORT);

fn runtimes(world: &World) -> (Podman, Containerd) {
    let podman = Podman::create(&world.underlay, &world.image);
    (podman, Containerd::start(&world.underlay, &world.image))
}

/// Their containers reach each other, and a port of the host has one of them.
pub(super) fn share_a_node() {
    let world = World::create();
    let (podman, containerd) = runtimes(&world);
    let one = podman.start("c1", Some(MAPPING)).expect("started");
    let refused = containerd.start("c3", Some(MAPPING)).err().unwrap_or_default();
    let reason = format!("hostPort 192.0.2.1:8090 TCP is taken: it leads to Pod {}", known_as(&one));
    assert!(refused.contains(&reason), "{refused:?}");
    let other = containerd.start("c2", None).expect("started");
    world.check_pair((&podman, &one), (&containerd, &other));
    world.remove(&podman, one);
    world.remove(&containerd, other);
    containerd.stop();
    world.wait_until_clean();
}

/// Without an agent containers can be taken away, and none can be started; the next agent finds all that.
pub(super) fn outlive_the_agent() {
    let mut world = World::create();
    let (podman, containerd) = runtimes(&world);
    let [one, other] =
        [podman.start("c1", Some(MAPPING)), containerd.start("c2", None)].map(|started| started.expect("started"));
    let (kept, late) = (podman.start("c4", None).expect("started"), "c3");
    world.without_agent(|| {
        podman.remove(&one);
        containerd.remove(&other);
        for runtime in [&podman as &dyn Runtime, &containerd] {
            let refused = runtime.start(late, None).err().unwrap_or_default();
            assert!(refused.contains("is not ready"), "{refused:?}");
        }
        podman.forget(late);
    });
    let started = containerd.start(late, Some(MAPPING)).expect("started");
    world.check_pair((&podman, &kept), (&containerd, &started));
    world.remove(&podman, kept);
    world.remove(&containerd, started);
    containerd.stop();
    world.wait_until_clean();
}

/// A test that fails while containers run.
pub(super) fn fail() {
    let world = World::create();
    let (podman, containerd) = runtimes(&world);
    let started = [podman.start("c1", Some(MAPPING)), containerd.start("c2", None)];
    assert!(started.iter().all(Result::is_ok));
    panic!("meant to fail");
}
