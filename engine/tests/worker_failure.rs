//! A worker that panics or stands still, under load: the other one loses nothing, it is back with its ports, tables and
//! connections, frames are conserved, and what must not pass does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_engine::clock::Clock;
use millrace_engine::counters::{Event, WorkerCounters};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::{VECTOR_PACKETS, WORKER_FAILURES};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire};
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, FailingQueue, Faults, FrameBuilder, SYN, frame};
use millrace_engine::worker::health::{Finding, LOOK_TIME};
use millrace_engine::worker::{AttachError, IdlePolicy};

/// Sender and receiver on worker 0, whose sender's port fails, and on worker 1.
const FAILING: (u16, u16) = (1, 3);
const SOUND: (u16, u16) = (2, 4);
const ROUNDS: u32 = 600;
const BATCH: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(20);

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

fn towards((from, to): (u16, u16)) -> FrameBuilder {
    frame().from(mac(from), &*format!("10.1.0.{from}")).to(GATEWAY_MAC, &*format!("10.1.0.{to}"))
}

/// A switch of two workers on threads, and the wires of four pods.
struct World {
    switch: Switch,
    wires: Vec<MemoryWire>,
    faults: Arc<Faults>,
}

impl World {
    fn new(idle: IdlePolicy) -> Self {
        let options = SwitchOptions { clock: Clock::Monotonic, idle, ..Node::options(2) };
        let (mut switch, faults) = (Switch::new(options).expect("a switch"), Arc::new(Faults::default()));
        let mut wires = Vec::new();
        for port in 1..=4 {
            let wire = MemoryWire::default();
            let queue = Box::new(MemoryQueue::new(PortIndex(port), wire.clone(), MemoryQueue::LIKE_TAP));
            let failing = Box::new(FailingQueue::new(queue, Arc::clone(&faults)));
            let sound = Box::new(MemoryQueue::new(PortIndex(port), wire.clone(), MemoryQueue::LIKE_TAP));
            match port {
                1 | 3 => switch.attach(PortIndex(port), vec![Some(failing), None]),
                _ => switch.attach(PortIndex(port), vec![None, Some(sound)]),
            }
            .expect("attached");
            wires.push(wire);
        }
        let pod = |port: u16| {
            let addresses = vec![format!("10.1.0.{port}").parse().expect("address")];
            TestPod { port, mac: mac(port), addresses }
        };
        switch.publish(pods_snapshot(&[1, 2, 3, 4].map(pod), 100, mac(200), &[]));
        switch.start().expect("threads");
        Self { switch, wires, faults }
    }

    fn wire(&self, port: u16) -> &MemoryWire {
        &self.wires[usize::from(port) - 1]
    }

    fn counters(&self, worker: usize) -> &Arc<WorkerCounters> {
        self.switch.counters().nth(worker).expect("a worker")
    }

    /// A numbered datagram, and one that pretends to be of another pod.
    fn send(&self, pair: (u16, u16), number: u32) {
        let spoofed = frame().from(mac(pair.0), "10.1.0.77").to(GATEWAY_MAC, &*format!("10.1.0.{}", pair.1));
        self.wire(pair.0).send(spoofed.udp().ports(666, 666).payload(&number.to_be_bytes()).wire());
        self.wire(pair.0).send(towards(pair).udp().ports(1_000, 53).payload(&number.to_be_bytes()).wire());
    }

    /// The numbers that arrived, in their order.
    fn arrived(&self, pair: (u16, u16)) -> Vec<u32> {
        let frames = std::iter::from_fn(|| self.wire(pair.1).receive());
        let number = |bytes: &[u8]| {
            assert_ne!(&bytes[34..36], &666_u16.to_be_bytes(), "spoofed, and delivered");
            u32::from_be_bytes(bytes[42..46].try_into().expect("four bytes"))
        };
        frames.map(|frame| number(&frame.bytes)).collect()
    }

    fn await_that(&self, what: &str, met: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !met(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}", self.counters(0).health);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until both workers have taken and sent everything.
    fn settle(&self) {
        let turns = |world: &Self| [0, 1].map(|worker| world.counters(worker).event(Event::Turns).get());
        self.await_that("frames are taken", |world| world.wires.iter().all(|wire| wire.waiting() == 0));
        let before = turns(self);
        self.await_that("two turns", |world| turns(world).iter().zip(before).all(|(now, before)| *now > before + 2));
    }
}

/// Opens a TCP connection between the pods of the failing worker.
fn open_connection(world: &World) {
    let (client, server) = (FAILING, (FAILING.1, FAILING.0));
    for (pair, flags, ports) in
        [(client, SYN, (5_000, 80)), (server, SYN | ACK, (80, 5_000)), (client, ACK, (5_000, 80))]
    {
        world.wire(pair.0).send(towards(pair).tcp(flags).ports(ports.0, ports.1).wire());
        world.await_that("a step of the handshake", |world| world.wire(pair.1).receive().is_some());
    }
}

/// Load on both workers, and a fault of worker 0 in the middle of it; the numbers that arrived on both sides.
fn fail_under_load(world: &World, fault: &std::sync::atomic::AtomicU32) -> [Vec<u32>; 2] {
    let mut arrived = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            fault.store(1, Ordering::Relaxed);
        }
        for number in round * BATCH..(round + 1) * BATCH {
            [FAILING, SOUND].into_iter().for_each(|pair| world.send(pair, number));
        }
        world.await_that("room", |world| world.wires.iter().all(|wire| wire.waiting() < 256));
        [FAILING, SOUND].into_iter().zip(&mut arrived).for_each(|(pair, list)| list.extend(world.arrived(pair)));
    }
    world.settle();
    [FAILING, SOUND].into_iter().zip(&mut arrived).for_each(|(pair, list)| list.extend(world.arrived(pair)));
    arrived
}

#[test]
fn a_worker_that_panics_is_back_alone_and_nobody_else_loses_anything() {
    type Pick = fn(&Faults) -> &std::sync::atomic::AtomicU32;
    let kinds: [(&str, Pick); 3] = [
        ("receive", |faults| &faults.receive),
        ("another worker's memory", |faults| &faults.foreign),
        ("transmit", |faults| &faults.transmit),
    ];
    for (words, pick) in kinds {
        let mut world = World::new(IdlePolicy::BusyPoll);
        open_connection(&world);
        world.settle();
        let (free, before) = (world.counters(0).free_frames.get(), Instant::now());
        let [failing, sound] = fail_under_load(&world, pick(&world.faults));
        let all: Vec<u32> = (0..ROUNDS * BATCH).collect();
        assert!(sound == all, "{words}: the other worker lost {} or changed their order", all.len() - sound.len());
        assert!(failing.is_sorted(), "{words}: order");

        let counters = Arc::clone(world.counters(0));
        let failure = counters.health.last_failure().expect("a failure");
        assert_eq!((counters.health.failures(), world.counters(1).health.failures()), (1, 0), "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?}");
        let (lost, counted) = (all.len() - failing.len(), counters.drops(DropReason::WorkerFailed).get());
        assert_eq!(counted, failure.lost_frames);
        assert!(lost <= VECTOR_PACKETS && counted as usize <= VECTOR_PACKETS + 1, "{words}: {lost} lost, {counted}");
        println!("panic in {words}: {lost} datagrams lost, {counted} frames counted, back in {:?}", failure.out_for);
        println!("  of {} datagrams a worker in {:?}", all.len(), before.elapsed());

        // The connection is the one of before: nobody opens one with the worker's new flow cache.
        let opened = |world: &World| world.counters(0).event(Event::ConnectionsNew).get();
        let known = opened(&world);
        world.wire(FAILING.0).send(towards(FAILING).tcp(ACK).ports(5_000, 80).payload(b"on").wire());
        world.await_that("data of the connection", |world| world.wire(FAILING.1).receive().is_some());
        assert_eq!(opened(&world), known, "{words}");

        world.settle();
        assert_eq!(world.counters(0).free_frames.get(), free, "{words}: every frame is free again");
        world.switch.stop();
        for worker in [0, 1] {
            assert_eq!(world.counters(worker).unaccounted(), 0, "{words}: frames of worker {worker} are conserved");
        }
    }
}

#[test]
fn a_worker_that_stands_still_is_found_and_the_other_goes_on() {
    let mut world = World::new(IdlePolicy::BusyPoll);
    let mut watch = world.switch.watch();
    let mut look_for = |wanted: Finding| {
        let start = Instant::now();
        while !watch.look().contains(&wanted) {
            assert!(start.elapsed() < PATIENCE, "{wanted:?}");
            std::thread::sleep(LOOK_TIME);
        }
        start.elapsed()
    };
    world.faults.stall.store(true, Ordering::Relaxed);
    let found_in = look_for(Finding::Stalled(0));
    for number in 0..BATCH {
        [FAILING, SOUND].into_iter().for_each(|pair| world.send(pair, number));
    }
    world.await_that("the other's frames", |world| world.wire(SOUND.0).waiting() == 0);
    // Publishes do not wait for it either, however many there are.
    let tables = world.switch.tables();
    (0..2_000).for_each(|_| drop(world.switch.publish((*tables).clone())));
    assert!(world.arrived(FAILING).is_empty(), "it stands still");
    world.faults.stall.store(false, Ordering::Relaxed);
    look_for(Finding::Moves(0));
    world.settle();
    let all: Vec<u32> = (0..BATCH).collect();
    assert_eq!((world.arrived(FAILING), world.arrived(SOUND)), (all.clone(), all), "what waited is served");
    assert_eq!(world.counters(0).health.stalls(), 1);
    println!("a worker that stood still was found in {found_in:?}");
    world.switch.stop();
}

#[test]
fn a_worker_that_always_panics_ends_and_its_ports_are_closed() {
    let mut world = World::new(IdlePolicy::default());
    world.faults.receive.store(u32::MAX, Ordering::Relaxed);
    let (mut number, start) = (0, Instant::now());
    while !world.counters(0).health.has_ended() {
        assert!(start.elapsed() < PATIENCE * 3, "{:?}", world.counters(0).health);
        [FAILING, SOUND].into_iter().for_each(|pair| world.send(pair, number));
        number += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(world.counters(0).health.failures(), u64::from(WORKER_FAILURES) + 1);
    world.await_that("the other's frames", |world| world.wire(SOUND.0).waiting() == 0);
    let mut arrived = world.arrived(SOUND);
    let start = Instant::now();
    while arrived.len() < number as usize && start.elapsed() < PATIENCE {
        arrived.extend(world.arrived(SOUND));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(arrived, (0..number).collect::<Vec<u32>>(), "the other worker lost nothing");
    assert!(world.arrived(FAILING).is_empty(), "nothing passes a worker that is gone");
    let queue = Box::new(MemoryQueue::new(PortIndex(9), MemoryWire::default(), MemoryQueue::LIKE_TAP));
    let refused = world.switch.attach(PortIndex(9), vec![Some(queue), None]);
    assert!(matches!(refused, Err(AttachError::WorkerStopped(0))), "{refused:?}");
    world.switch.stop();
}
