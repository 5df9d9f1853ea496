//! The contract of a store.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_control::cluster::NodeName;
use millrace_control::ipam::{AddressAllocator, AddressRequest};
use millrace_control::observe::{IP_BLOCK, IP_POOL, NETWORK_POLICY, Observed};
use millrace_control::store::{Event, ObjectStore, StoreError};
use serde_json::json;

use crate::worlds::World;

/// A test by its name.
pub(crate) type Test = (&'static str, fn(&World));

pub(crate) const TESTS: &[Test] = &[
    ("writes_are_compare_and_swap", writes_are_compare_and_swap),
    ("what_is_not_there_is_not_found", what_is_not_there_is_not_found),
    ("an_object_without_a_name_is_refused", an_object_without_a_name_is_refused),
    ("a_status_is_written_by_itself", a_status_is_written_by_itself),
    ("increments_of_several_writers_all_count", increments_of_several_writers_all_count),
    ("of_many_creators_one_succeeds", of_many_creators_one_succeeds),
    ("a_list_is_in_order_and_sees_every_write", a_list_is_in_order_and_sees_every_write),
    ("a_watch_lists_then_follows", a_watch_lists_then_follows),
    ("what_is_written_as_it_is_makes_no_event", what_is_written_as_it_is_makes_no_event),
    ("a_watch_that_is_dropped_ends", a_watch_that_is_dropped_ends),
    ("no_address_is_given_twice", no_address_is_given_twice),
];

fn writes_are_compare_and_swap(world: &World) {
    let store = world.store();
    let key = world.block_key("x");
    let created = store.create(&world.block("x", "n1")).expect("create");
    assert!(matches!(store.create(&world.block("x", "n2")), Err(StoreError::AlreadyExists { .. })));
    let updated = store.update(&world.block("x", "n3"), &created.resource_version).expect("update");
    let stale = store.update(&world.block("x", "n4"), &created.resource_version);
    let Err(error @ StoreError::Conflict { .. }) = stale else { panic!("{stale:?}") };
    assert!(error.is_race());
    assert!(error.to_string().contains(&*updated.resource_version), "{error}");
    let read = store.get(&key).expect("get").expect("there");
    assert_eq!((read.to_json(), &read.resource_version), (world.block("x", "n3"), &updated.resource_version));
    let stale = store.delete(&key, &created.resource_version);
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    store.delete(&key, &updated.resource_version).expect("delete");
    let again = store.delete(&key, &updated.resource_version);
    assert!(matches!(again, Err(StoreError::NotFound { .. })), "{again:?}");
    assert_eq!(store.get(&key).expect("get"), None);
}

fn what_is_not_there_is_not_found(world: &World) {
    let store = world.store();
    assert_eq!(store.get(&world.block_key("nobody")).expect("get"), None);
    let version = store.create(&world.block("x", "n1")).expect("create").resource_version;
    let update = store.update(&world.block("nobody", "n1"), &version);
    assert!(matches!(update, Err(StoreError::NotFound { .. })), "{update:?}");
    let status = store.update_status(&world.block("nobody", "n1"), &version);
    assert!(matches!(status, Err(StoreError::NotFound { .. })), "{status:?}");
}

fn an_object_without_a_name_is_refused(world: &World) {
    let store = world.store();
    let nameless = json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": {}, "spec": {}});
    assert!(matches!(store.create(&nameless), Err(StoreError::Malformed(_))));
    assert!(matches!(store.update(&nameless, "1"), Err(StoreError::Malformed(_))));
}

fn a_status_is_written_by_itself(world: &World) {
    let store = world.store();
    let created = store.create(&world.block("x", "n1")).expect("create");
    let mut block = world.block("x", "n2");
    block["status"] = json!({"conditions": [{"type": "InUse", "status": "True"}]});
    let written = store.update_status(&block, &created.resource_version).expect("written").to_json();
    assert_eq!((&written["spec"]["node"], &written["status"]), (&json!("n1"), &block["status"]), "the rest stays");
    let stale = store.update_status(&block, &created.resource_version);
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
}

/// The number in a block's node.
fn value(store: &dyn ObjectStore, world: &World) -> (u32, String) {
    let object = store.get(&world.block_key("x")).expect("get").expect("there");
    let node = object.to_json()["spec"]["node"].as_str().map(str::to_owned).expect("a node");
    (node.trim_start_matches('n').parse().expect("a number"), object.resource_version.to_string())
}

fn increments_of_several_writers_all_count(world: &World) {
    world.store().create(&world.block("x", "n0")).expect("create");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = world.store();
                let mut done = 0;
                while done < 10 {
                    let (value, version) = value(store.as_ref(), world);
                    match store.update(&world.block("x", &format!("n{}", value + 1)), &version) {
                        Ok(_) => done += 1,
                        Err(error) if error.is_race() => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(value(world.store().as_ref(), world).0, 40);
}

fn of_many_creators_one_succeeds(world: &World) {
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let created = &created;
            scope.spawn(move || match world.store().create(&world.block("x", &format!("n{number}"))) {
                Ok(_) => drop(created.fetch_add(1, Ordering::Relaxed)),
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => panic!("{error}"),
            });
        }
    });
    assert_eq!(created.load(Ordering::Relaxed), 1);
}

fn a_list_is_in_order_and_sees_every_write(world: &World) {
    let (writer, reader) = (world.store(), world.store());
    for word in ["b", "a", "c"] {
        writer.create(&world.block(word, "n1")).expect("create");
        writer.create(&world.policy(word, "on")).expect("create");
        let own = |objects: Vec<millrace_control::store::Object>| {
            objects.into_iter().filter(|object| object.key.name.starts_with(&world.name(""))).collect::<Vec<_>>()
        };
        let (blocks, policies) =
            (own(reader.list(&IP_BLOCK).expect("list")), own(reader.list(&NETWORK_POLICY).expect("list")));
        assert!(blocks.iter().any(|object| object.key == world.block_key(word)), "a write that returned is seen");
        assert!(blocks.is_sorted_by_key(|object| &object.key) && policies.is_sorted_by_key(|object| &object.key));
        assert_eq!(policies.len(), blocks.len());
        assert!(policies.iter().all(|object| object.key.namespace.as_deref() == Some("default")));
    }
}

fn a_watch_lists_then_follows(world: &World) {
    let store = world.store();
    let block = store.create(&world.block("a", "n1")).expect("create");
    let policy = store.create(&world.policy("p", "on")).expect("create");
    let watch = world.store().watch(&World::kinds()).expect("watch");
    let mut first = world.lines(&watch, 3);
    assert_eq!(first.pop().as_deref(), Some("synced"), "behind all objects");
    first.sort();
    assert_eq!(first, ["applied IpBlock a = n1", "applied NetworkPolicy p = on"]);
    let block = store.update(&world.block("a", "n2"), &block.resource_version).expect("update");
    assert_eq!(world.lines(&watch, 1), ["applied IpBlock a = n2"]);
    store.create(&world.block("b", "n1")).expect("create");
    assert_eq!(world.lines(&watch, 1), ["applied IpBlock b = n1"]);
    store.update(&world.policy("p", "off"), &policy.resource_version).expect("update");
    assert_eq!(world.lines(&watch, 1), ["applied NetworkPolicy p = off"]);
    store.delete(&block.key, &block.resource_version).expect("delete");
    assert_eq!(world.lines(&watch, 1), ["deleted IpBlock a"]);
}

fn what_is_written_as_it_is_makes_no_event(world: &World) {
    let store = world.store();
    let policy = store.create(&world.policy("p", "on")).expect("create");
    let watch = store.watch(&World::kinds()).expect("watch");
    world.lines(&watch, 2);
    let same = store.update(&world.policy("p", "on"), &policy.resource_version).expect("update");
    store.update(&world.policy("p", "off"), &same.resource_version).expect("update");
    assert_eq!(world.lines(&watch, 1), ["applied NetworkPolicy p = off"]);
}

fn a_watch_that_is_dropped_ends(world: &World) {
    let threads = || std::fs::read_dir("/proc/self/task").expect("proc").count();
    let store = world.store();
    let before = threads();
    for _ in 0..20 {
        let watch = store.watch(&World::kinds()).expect("watch");
        watch.events.recv().expect("an event");
        drop(watch);
    }
    // Other tests run beside this one, so threads come and go; twenty left over would show.
    for _ in 0..100 {
        if threads() < before + 20 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("threads of watches are left: {} and before {before}", threads());
}

/// What a whole watch of the address kinds shows.
fn observed(store: &dyn ObjectStore) -> Observed {
    let watch = store.watch(&[IP_POOL, IP_BLOCK]).expect("watch");
    let mut observed = Observed::default();
    while !observed.is_synced() {
        let event: Event = watch.events.recv_timeout(std::time::Duration::from_secs(30)).expect("an event");
        observed.take(event);
    }
    observed
}

fn no_address_is_given_twice(world: &World) {
    let pool = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "IpPool", "metadata": {"name": world.name("pool")},
        "spec": {"cidr": "10.99.0.0/25", "blockSize": 28},
    });
    let store = world.store();
    let pool = store.create(&pool).expect("create");
    let given = std::thread::scope(|scope| {
        let agent = |number: usize| {
            move || {
                let store = world.store();
                let mut allocator = AddressAllocator::new(NodeName::new(&format!("node-{number}")).expect("name"));
                let mut given = Vec::new();
                for pod in 0..12 {
                    let holder = format!("pod-{pod}");
                    let observed = observed(store.as_ref());
                    let addresses =
                        allocator.allocate(store.as_ref(), observed.cluster(), &AddressRequest::any(&holder));
                    given.extend(addresses.unwrap_or_else(|error| panic!("node-{number}: {error}")));
                }
                given
            }
        };
        let agents: Vec<_> = (0..6).map(|number| scope.spawn(agent(number))).collect();
        agents.into_iter().flat_map(|agent| agent.join().expect("an agent")).collect::<Vec<_>>()
    });
    let distinct: BTreeSet<_> = given.iter().collect();
    let blocks: Vec<_> = store.list(&IP_BLOCK).expect("list");
    let blocks = blocks.iter().filter(|block| block.to_json()["spec"]["pool"] == json!(world.name("pool")));
    for block in blocks {
        store.delete(&block.key, &block.resource_version).expect("delete");
    }
    store.delete(&pool.key, &pool.resource_version).expect("delete");
    assert_eq!((given.len(), distinct.len()), (72, 72), "an address was given twice: {given:?}");
}
