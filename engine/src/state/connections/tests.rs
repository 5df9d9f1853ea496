//! The table against plain maps: every operation in any order, on a table so small that connections crowd each other out.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::packet::wire::tcp::flag;
use crate::tables::SegmentIndex;

fn key() -> HashKey {
    HashKey::from_seed(5)
}

fn table(capacity: usize) -> Connections {
    let table = Connections::new(capacity, 1, key()).expect("memory");
    table.written_back(0, 0);
    table
}

fn at(milliseconds: u64) -> Time {
    Time::from_nanoseconds(milliseconds * 1_000_000)
}

/// Tuple number `number`: every third UDP, the rest TCP; every other IPv6.
fn tuple(number: u32) -> Tuple {
    let mut tuple = Tuple {
        source: [0; 16],
        destination: [0; 16],
        ports: [number as u16, 80],
        segment: SegmentIndex((number >> 16) as u16),
        protocol: if number.is_multiple_of(3) { protocol::UDP } else { protocol::TCP },
        ipv6: number.is_multiple_of(2),
    };
    tuple.source[..4].copy_from_slice(&[10, 0, 0, 1]);
    tuple.destination[..4].copy_from_slice(&[10, 0, 0, 2]);
    tuple
}

/// What opens connection `number`; with `port`, replies come from elsewhere and to another port.
fn opening(number: u32, port: Option<u16>) -> NewConnection {
    let original = tuple(number);
    let mut reply = original.mirrored();
    if let Some(port) = port {
        reply.source[3] = 77;
        reply.ports = [8080, port];
        reply.segment = SegmentIndex(9);
    }
    let state = if original.protocol == protocol::UDP { ConnectionState::Unreplied } else { ConnectionState::SynSent };
    let (flags, replaces) = (ConnectionFlags::NONE, None);
    NewConnection { original, reply, state, flags, service: number, endpoint: 7, replaces }
}

fn open(table: &Connections, number: u32, port: Option<u16>, now: Time) -> ConnectionReference {
    match table.open(&opening(number, port), now, |removed| panic!("{removed:?} went")) {
        Opened::New(reference) => reference,
        other => panic!("connection {number}: {other:?}"),
    }
}

/// Opens a connection in a full table, and says which one gave way.
fn open_in_full(table: &Connections, number: u32, now: Time) -> Removed {
    let mut gone = Vec::new();
    let opened = table.open(&opening(number, None), now, |removed| gone.push(removed));
    assert!(matches!(opened, Opened::New(_)) && gone.len() == 1, "{opened:?}, {gone:?}");
    gone[0]
}

/// Brings a TCP connection through its handshake.
fn establish(table: &Connections, reference: ConnectionReference, now: Time) {
    assert_eq!(table.advance(reference, Direction::Reply, flag::SYN | flag::ACK, now), Advanced::Goes);
    assert_eq!(table.advance(reference, Direction::Original, flag::ACK, now), Advanced::Goes);
}

fn all(table: &Connections) -> HashMap<Tuple, Connection> {
    let mut found = HashMap::new();
    let mut from = Some(0);
    while let Some(place) = from {
        from = table.for_each(place, |connection| {
            assert!(found.insert(connection.original, *connection).is_none(), "shown twice");
        });
    }
    found
}

#[test]
fn both_tuples_lead_to_a_connection_and_their_difference_is_its_translation() {
    let table = table(1000);
    let plain = open(&table, 1, None, at(5));
    let translated = open(&table, 2, Some(40_000), at(6));
    let (found, direction) = table.find(&tuple(1).mirrored()).expect("the reply");
    assert_eq!((found.reference, direction, found.opened_ms), (plain, Direction::Reply, 5));
    assert_eq!(found.translation(Direction::Original), Translation::NONE);
    let new = opening(2, Some(40_000));
    assert_eq!(
        table.find(&new.original).map(|(found, way)| (found.reference, way)),
        Some((translated, Direction::Original))
    );
    let (found, direction) = table.find(&new.reply).expect("the translated reply");
    assert_eq!((found.reference, direction, found.service, found.endpoint), (translated, Direction::Reply, 2, 7));
    assert!(table.find(&tuple(2).mirrored()).is_none(), "replies that were not translated are not this connection's");
    let there = found.translation(Direction::Original);
    assert_eq!(there.source, Some((new.reply.destination, 40_000)));
    assert_eq!(there.destination, Some((new.reply.source, 8080)));
    let back = found.translation(Direction::Reply);
    assert_eq!(back.source, Some((new.original.destination, 80)));
    assert_eq!(back.destination, Some((new.original.source, 2)));
}

#[test]
fn a_tuple_has_one_connection() {
    let table = table(1000);
    open(&table, 1, Some(40_000), at(0));
    assert_eq!(table.open(&opening(1, None), at(0), |_| {}), Opened::Taken, "the original tuple");
    let same_port = NewConnection { reply: opening(1, Some(40_000)).reply, ..opening(4, None) };
    assert_eq!(table.open(&same_port, at(0), |_| {}), Opened::Taken, "the masquerade port");
    let straight = NewConnection { original: same_port.reply.mirrored(), reply: same_port.reply, ..same_port };
    assert_eq!(table.open(&straight, at(0), |_| {}), Opened::Taken, "speaking to the endpoint itself by the same port");
    assert_eq!(table.live(), 1);
}

/// Whoever counts connections hears of each that ends, also where the one that it ended for did not open.
#[test]
fn what_goes_for_an_opening_is_told_although_it_failed() {
    let table = table(1000);
    let counted = |new: NewConnection| NewConnection { flags: ConnectionFlags::COUNTED, ..new };
    let told = |new: &NewConnection| {
        let mut told = Vec::new();
        let opened = table.open(new, at(1), |removed| told.push(removed.counted));
        (opened, told)
    };
    let (Opened::New(over), _) = told(&counted(opening(1, None))) else { panic!("no room") };
    open(&table, 2, Some(40_000), at(0));
    let reply = opening(2, Some(40_000)).reply;
    let taken = NewConnection { replaces: Some(over), reply, ..opening(1, None) };
    assert_eq!(told(&taken), (Opened::Taken, vec![Some((1, 7))]));
    assert_eq!(table.live(), 1);
}

#[test]
fn names_end_with_their_connection() {
    let table = table(1);
    let first = open(&table, 1, None, at(0));
    table.set_place(first, Direction::Reply, CachePlace::new(1, 9));
    let removed = table.remove(first).expect("it lived");
    assert_eq!((removed.places, removed.evicted), ([None, CachePlace::new(1, 9)], false));
    let second = open(&table, 2, None, at(0));
    assert_eq!((first.index, table.live()), (second.index, 1));
    assert!(!table.touch(first, 9) && table.get(first).is_none() && table.remove(first).is_none());
    assert_eq!(table.advance(first, Direction::Original, 0, at(1)), Advanced::Gone);
    table.set_place(first, Direction::Original, CachePlace::new(0, 1));
    assert_eq!(table.remove(second).map(|removed| removed.places), Some([None, None]));
}

#[test]
fn a_full_table_gives_up_what_nobody_answered_first_and_the_oldest_of_it() {
    let table = table(8);
    let numbers: Vec<u32> = (0..40).filter(|number| number % 3 != 0).take(12).collect();
    let references: Vec<_> =
        numbers[..8].iter().enumerate().map(|(age, n)| open(&table, *n, None, at(age as u64))).collect();
    establish(&table, references[0], at(10));
    establish(&table, references[1], at(11));
    for (new, old) in [(8, 2), (9, 3)] {
        let gone = open_in_full(&table, numbers[new], at(20));
        assert_eq!((gone.reference, gone.evicted), (references[old], true));
    }
    for number in &numbers[4..10] {
        let (found, _) = table.find(&tuple(*number)).expect("it lives");
        establish(&table, found.reference, at(30));
    }
    // Only established ones are left; the longest silent gives way.
    assert!(table.touch(references[0], 50));
    let gone = open_in_full(&table, numbers[10], at(60));
    assert_eq!(gone.reference, references[1]);
    // And the newcomer, unanswered, before any of them.
    let newcomer = table.find(&tuple(numbers[10])).expect("it lives").0.reference;
    let gone = open_in_full(&table, numbers[11], at(70));
    assert_eq!(gone.reference, newcomer);
}

#[test]
fn expiry_waits_for_what_the_caches_have_not_written_back() {
    let table = Connections::new(100, 2, key()).expect("memory");
    let connection = open(&table, 3, None, at(0));
    let expired = |now_ms: u64| {
        let mut ended = Vec::new();
        table.expire_step(1000, at(now_ms), |removed| ended.push(removed.reference));
        ended
    };
    assert!(expired(100_000).is_empty(), "no cache has written anything back");
    table.written_back(0, 100_000);
    assert!(expired(100_000).is_empty(), "one cache has not");
    table.written_back(1, 29_999);
    assert!(expired(101_000).is_empty(), "seen by the second cache until 29.999 s at least");
    assert!(table.touch(connection, 29_000));
    table.written_back(1, 58_999);
    assert!(expired(103_000).is_empty(), "29.999 s of silence at most");
    table.written_back(1, 59_000);
    table.written_back(0, 103_000);
    assert!(expired(103_500).is_empty(), "the scan rests");
    assert_eq!(expired(105_000), [connection]);
    assert_eq!(table.live(), 0);
}

#[test]
fn leaving_the_settled_states_names_the_places_to_forget() {
    let table = table(100);
    let connection = open(&table, 1, None, at(0));
    establish(&table, connection, at(0));
    let places = [CachePlace::new(0, 5), CachePlace::new(3, 9)];
    table.set_place(connection, Direction::Original, places[0]);
    table.set_place(connection, Direction::Reply, places[1]);
    let fin = flag::FIN | flag::ACK;
    assert_eq!(table.advance(connection, Direction::Original, fin, at(1)), Advanced::Unsettled(places));
    assert_eq!(table.advance(connection, Direction::Reply, flag::ACK, at(1)), Advanced::Goes);
    assert_eq!(table.get(connection).map(|found| found.state), Some(ConnectionState::CloseWait));
}

#[derive(Clone, Debug)]
enum Action {
    Open { number: u32, port: Option<u16> },
    Advance { number: u32, direction: Direction, signal: u8 },
    Touch { number: u32 },
    Remove { number: u32 },
    Pass { milliseconds: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let number = 0..24u32;
    let direction = prop_oneof![Just(Direction::Original), Just(Direction::Reply)];
    let flags = [flag::SYN, flag::SYN | flag::ACK, flag::ACK, flag::FIN | flag::ACK, flag::RST];
    prop_oneof![
        4 => (number.clone(), prop::option::of(1..4u16)).prop_map(|(number, port)| Action::Open { number, port }),
        6 => (number.clone(), direction, prop::sample::select(flags.to_vec()))
            .prop_map(|(number, direction, signal)| Action::Advance { number, direction, signal }),
        1 => number.clone().prop_map(|number| Action::Touch { number }),
        1 => number.prop_map(|number| Action::Remove { number }),
        1 => prop::sample::select(vec![1, 900, 11_000, 31_000, 130_000]).prop_map(|milliseconds| Action::Pass { milliseconds }),
    ]
}

/// What plain maps know of a connection.
#[derive(Clone, Debug)]
struct Known {
    reply: Tuple,
    progress: Progress,
    opened_ms: u32,
    seen_ms: u32,
    reference: ConnectionReference,
}

impl Known {
    fn longest_silence(&self, number: u8) -> Duration {
        self.progress.longest_silence(number, (self.opened_ms, self.seen_ms), &ConnectionTimeouts::default())
    }
}

/// The model: connections by their original tuple, and those that give way early in their order.
#[derive(Default)]
struct Model {
    known: HashMap<Tuple, Known>,
    early: Vec<Tuple>,
}

impl Model {
    fn owner(&self, tuple: &Tuple) -> Option<(Tuple, Direction)> {
        let is_its = |(original, known): (&Tuple, &Known)| match () {
            () if original == tuple => Some((*original, Direction::Original)),
            () if known.reply == *tuple => Some((*original, Direction::Reply)),
            () => None,
        };
        self.known.iter().find_map(is_its)
    }

    fn forget(&mut self, original: &Tuple) {
        self.known.remove(original);
        self.early.retain(|early| early != original);
    }

    fn by_reference(&self, reference: ConnectionReference) -> Tuple {
        *self.known.iter().find(|(_, known)| known.reference == reference).expect("a known connection").0
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_plain_maps_do(actions in prop::collection::vec(action(), 1..120)) {
        const CAPACITY: usize = 10;
        let table = table(CAPACITY);
        let mut model = Model::default();
        let mut now_ms = 0u64;
        for action in actions {
            let now = at(now_ms);
            match action {
                Action::Open { number, port } => {
                    let new = opening(number, port);
                    let taken = model.owner(&new.original).is_some() || model.owner(&new.reply).is_some();
                    let mut evicted = None;
                    match table.open(&new, now, |removed| evicted = Some(removed)) {
                        Opened::Taken => prop_assert!(taken),
                        Opened::Full => prop_assert!(false, "an entry can always be had"),
                        Opened::New(reference) => {
                            prop_assert!(!taken);
                            prop_assert_eq!(evicted.is_some(), model.known.len() == CAPACITY);
                            if let Some(evicted) = evicted {
                                let victim = model.by_reference(evicted.reference);
                                match model.early.first() {
                                    Some(oldest) => prop_assert_eq!(victim, *oldest),
                                    None => {
                                        let longest = model.known.values().map(|known| known.seen_ms).min();
                                        prop_assert_eq!(Some(model.known[&victim].seen_ms), longest);
                                    }
                                }
                                model.forget(&victim);
                            }
                            let progress = Progress { state: new.state, fins: 0, replied: false };
                            let (opened_ms, seen_ms) = (now_ms as u32, now_ms as u32);
                            let known = Known { reply: new.reply, progress, opened_ms, seen_ms, reference };
                            model.known.insert(new.original, known);
                            model.early.push(new.original);
                        }
                    }
                }
                Action::Advance { number, direction, signal } => {
                    let original = tuple(number);
                    let Some(known) = model.known.get_mut(&original) else { continue };
                    let before = known.progress;
                    known.progress = before.step(original.protocol, direction, signal);
                    known.seen_ms = now_ms as u32;
                    let unsettled = before.state.is_settled() && !known.progress.state.is_settled();
                    let early = (before.gives_way_early(), known.progress.gives_way_early());
                    let did = table.advance(known.reference, direction, signal, now);
                    prop_assert_eq!(matches!(did, Advanced::Unsettled(_)), unsettled);
                    match early {
                        (true, false) => model.early.retain(|early| *early != original),
                        (false, true) => model.early.push(original),
                        _ => {}
                    }
                }
                Action::Touch { number } => {
                    if let Some(known) = model.known.get_mut(&tuple(number)) {
                        known.seen_ms = now_ms as u32;
                        prop_assert!(table.touch(known.reference, now_ms as u32));
                        prop_assert!(table.touch(known.reference, known.seen_ms.saturating_sub(5)));
                    }
                }
                Action::Remove { number } => {
                    if let Some(known) = model.known.get(&tuple(number)) {
                        prop_assert!(table.remove(known.reference).is_some());
                        model.forget(&tuple(number));
                    }
                }
                Action::Pass { milliseconds } => {
                    now_ms += milliseconds + 1_000;
                    table.written_back(0, now_ms as u32);
                    let mut ended = Vec::new();
                    table.expire_step(CAPACITY, at(now_ms), |removed| ended.push(removed.reference));
                    for reference in ended {
                        let original = model.by_reference(reference);
                        let known = &model.known[&original];
                        let silence = known.longest_silence(original.protocol);
                        prop_assert!(Duration::from_millis(now_ms - u64::from(known.seen_ms)) >= silence);
                        model.forget(&original);
                    }
                    // The scan was one whole revolution: nobody else was silent for so long.
                    while table.is_expiring() {
                        table.expire_step(CAPACITY, at(now_ms), |_| panic!("the first step passed all"));
                    }
                    for (original, known) in &model.known {
                        let silence = known.longest_silence(original.protocol);
                        prop_assert!(Duration::from_millis(now_ms - u64::from(known.seen_ms)) < silence);
                    }
                }
            }
            let shown = all(&table);
            prop_assert_eq!(shown.len(), model.known.len());
            prop_assert_eq!(table.live(), model.known.len());
            for (original, known) in &model.known {
                let connection = shown[original];
                prop_assert_eq!((connection.reference, connection.reply), (known.reference, known.reply));
                prop_assert_eq!((connection.state, connection.replied), (known.progress.state, known.progress.replied));
                prop_assert_eq!((connection.opened_ms, connection.seen_ms), (known.opened_ms, known.seen_ms));
                let found = |tuple| table.find(tuple).map(|(found, way)| (found.reference, way));
                prop_assert_eq!(found(original), Some((known.reference, Direction::Original)));
                prop_assert_eq!(found(&known.reply), Some((known.reference, Direction::Reply)));
            }
            for number in 0..24 {
                let owner = model.owner(&tuple(number)).map(|(original, way)| (model.known[&original].reference, way));
                prop_assert_eq!(table.find(&tuple(number)).map(|(found, way)| (found.reference, way)), owner);
            }
        }
    }
}

/// Four threads open, find, advance and end connections that share ports; afterwards nothing is lost or found twice.
#[test]
fn workers_may_meet_anywhere() {
    let table = Connections::new(600, 4, key()).expect("memory");
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let table = &table;
            scope.spawn(move || {
                let mut state = worker + 1;
                for step in 0..60_000u64 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let number = (state >> 8) % 900;
                    let port = (state >> 28 != 0).then_some((number % 300) as u16);
                    match table.find(&opening(number, port).reply) {
                        Some((found, _)) if state % 5 == 0 => drop(table.remove(found.reference)),
                        Some((found, way)) => {
                            let answers = found.original.mirrored().ports == found.reply.ports;
                            assert!(answers || found.reply.ports[0] == 8080, "torn: {found:?}");
                            table.advance(found.reference, way, flag::ACK, at(step));
                            table.set_place(found.reference, way, CachePlace::new(worker as usize, number));
                        }
                        None => drop(table.open(&opening(number, port), at(step), |_| {})),
                    }
                    if step % 64 == 0 {
                        table.written_back(worker as usize, step as u32 * 7);
                        table.expire_step(32, at(step * 7), |_| {});
                    }
                }
            });
        }
    });
    let shown = all(&table);
    assert_eq!(shown.len(), table.live());
    assert!(!shown.is_empty() && shown.len() <= table.capacity());
    for connection in shown.values() {
        for (tuple, way) in [(connection.original, Direction::Original), (connection.reply, Direction::Reply)] {
            let found = table.find(&tuple).map(|(found, way)| (found.reference, way));
            assert_eq!(found, Some((connection.reference, way)));
        }
    }
    for connection in shown.values() {
        assert!(table.remove(connection.reference).is_some());
    }
    assert_eq!((table.live(), all(&table).len()), (0, 0));
}

/// The table of the other process, as a successor reads it.
fn of_another(table: &Connections, content: Content) -> KeptMemory {
    let file = table.file().try_clone_to_owned().expect("descriptor");
    KeptMemory::of_another(file, content).expect("mapped").expect("of this layout")
}

proptest! {
    /// Whatever a process does after its successor has read its connections, the successor catches up with: both tables have
    /// the same connections in the same states, and every name that the successor has found another place for is its own.
    #[test]
    fn a_successor_catches_up_with_every_change(
        before in proptest::collection::vec((0u32..40, 0u8..4), 0..60),
        meanwhile in proptest::collection::vec((0u32..40, 0u8..4), 0..60),
    ) {
        let (former, next) = (table(1024), Connections::new(2048, 1, HashKey::from_seed(6)).expect("memory"));
        let mut names = HashMap::new();
        let mut act = |(number, what): (u32, u8), now| {
            let known: Option<ConnectionReference> = names.get(&number).copied();
            match (known, what) {
                (None, _) => {
                    let port = number.is_multiple_of(5).then_some(2000 + number as u16);
                    names.insert(number, open(&former, number, port, now));
                }
                (Some(name), 0) => {
                    former.remove(name).expect("it lives");
                    names.remove(&number);
                }
                (Some(name), _) => drop(former.advance(name, Direction::Reply, flag::SYN | flag::ACK, now)),
            }
        };
        before.iter().for_each(|step| act(*step, at(1)));
        let bits = former.begin_journal().expect("memory");
        let journal = KeptMemory::of_another(bits, JOURNAL_CONTENT).expect("mapped").expect("of this layout");
        let memory = of_another(&former, CONTENT);
        let (_, mut followed) = next.follow(&memory, |_, _| true);
        meanwhile.iter().for_each(|step| act(*step, at(2)));
        let caught_up = next.catch_up((&memory, &journal), &mut followed, |_, _| true, drop);
        prop_assert_eq!(caught_up.refused, 0);
        let facts = |table: &Connections| -> HashMap<Tuple, (Tuple, ConnectionState, bool, u32)> {
            let facts = |one: Connection| (one.reply, one.state, one.replied, one.service);
            all(table).into_iter().map(|(tuple, one)| (tuple, facts(one))).collect()
        };
        prop_assert_eq!(facts(&next), facts(&former));
        prop_assert_eq!(next.live(), former.live());
    }
}
