//! What nodes had that are gone: freed by one of those that are there, and by nobody too early.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_control::cluster::{Cluster, PodName};
use millrace_control::ipam::check::{Attached, check};
use millrace_control::ipam::vanished::{BETWEEN_RANKS, Collected, GONE_BEFORE_COLLECTED, VanishedNodes};
use millrace_control::ipam::{AddressAllocator, AddressRequest, IpamError};
use millrace_control::observe::IP_BLOCK;
use millrace_control::store::{DirectoryStore, Kind, Object, ObjectKey, ObjectStore, StoreError, Watch};

use crate::address_crowd::observed;
use crate::support::{TestDirectory, node, node_name, pool};

/// All ranks of a few nodes.
const EVERYBODY: Duration = Duration::from_secs(10 * 60);

/// Nodes of these names and a pool.
fn directory(names: &[&str], pools: &str) -> (TestDirectory, DirectoryStore) {
    let directory = TestDirectory::new();
    directory.write("pools.yaml", pools);
    names.iter().for_each(|name| directory.write(&format!("node-{name}.yaml"), &node(name, &["192.0.2.1"])));
    let store = directory.store();
    (directory, store)
}

fn allocator(name: &str) -> AddressAllocator {
    AddressAllocator::new(node_name(name))
}

fn look(vanished: &mut VanishedNodes, store: &dyn ObjectStore, now: Instant) -> Collected {
    let done = vanished.collect(store, &observed(store), now);
    assert!(done.errors.is_empty(), "{:?}", done.errors);
    done
}

/// Findings of `check ipam` on node a, which holds nothing.
fn findings(cluster: &Cluster) -> Vec<String> {
    let found = check(cluster, (&node_name("a"), None), &Default::default(), &[] as &[Attached], true);
    found.into_iter().map(|finding| finding.message).collect()
}

#[test]
fn a_block_of_a_node_that_is_gone_is_free_after_a_quarter_of_an_hour() {
    let (directory, store) = directory(&["a", "gone"], &(pool("four", "10.1.0.0/24") + &pool("six", "fd00::/120")));
    let mut gone = allocator("gone");
    gone.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("addresses");
    allocator("a").allocate(&store, &observed(&store), &AddressRequest::any("y")).expect("addresses");
    let (mut a, start) = (VanishedNodes::new(node_name("a")), Instant::now());
    assert!(look(&mut a, &store, start).blocks.is_empty());
    directory.remove("node-gone.yaml");
    let left = start + Duration::from_secs(60);
    assert!(look(&mut a, &store, left).blocks.is_empty());
    assert_eq!(findings(&observed(&store)).len(), 2, "both families");
    assert!(look(&mut a, &store, left + GONE_BEFORE_COLLECTED - Duration::from_secs(1)).blocks.is_empty());
    assert_eq!(look(&mut a, &store, left + GONE_BEFORE_COLLECTED).blocks.len(), 2);
    assert_eq!((findings(&observed(&store)), store.list(&IP_BLOCK).expect("list").len()), (Vec::new(), 2));
}

#[test]
fn a_node_that_comes_back_in_time_loses_nothing() {
    let (directory, store) = directory(&["a", "b"], &pool("four", "10.1.0.0/24"));
    let mut b = allocator("b");
    let given = b.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("address");
    let (mut a, start) = (VanishedNodes::new(node_name("a")), Instant::now());
    directory.remove("node-b.yaml");
    look(&mut a, &store, start);
    directory.write("node-b.yaml", &node("b", &["192.0.2.2"]));
    let almost = start + GONE_BEFORE_COLLECTED - Duration::from_secs(1);
    look(&mut a, &store, almost);
    // Gone once more: the time starts anew.
    directory.remove("node-b.yaml");
    assert!(look(&mut a, &store, almost + Duration::from_secs(1)).blocks.is_empty());
    assert!(look(&mut a, &store, almost + GONE_BEFORE_COLLECTED).blocks.is_empty());
    // It is back, and the watch has not told it yet: the store is asked.
    let stale = observed(&store);
    directory.write("node-b.yaml", &node("b", &["192.0.2.2"]));
    let done = a.collect(&store, &stale, almost + 2 * GONE_BEFORE_COLLECTED);
    assert!(done.blocks.is_empty() && done.changed.is_empty() && done.errors.is_empty(), "{done:?}");
    assert_eq!(b.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("the same"), given);
}

#[test]
fn a_node_that_comes_back_late_gets_other_blocks_and_keeps_what_it_holds_from_new_pods() {
    let (directory, store) = directory(&["a", "b"], &pool("four", "10.1.0.0/25"));
    let mut b = allocator("b");
    let old = b.allocate(&store, &observed(&store), &AddressRequest::any("old")).expect("address")[0];
    let (mut vanished, start) = (VanishedNodes::new(node_name("a")), Instant::now());
    directory.remove("node-b.yaml");
    look(&mut vanished, &store, start);
    // The agent of b runs all the time and has heard of its block.
    b.maintain(&store, &observed(&store), &[], start);
    assert_eq!(look(&mut vanished, &store, start + GONE_BEFORE_COLLECTED).blocks.len(), 1);
    directory.write("node-b.yaml", &node("b", &["192.0.2.2"]));
    let new = b.allocate(&store, &observed(&store), &AddressRequest::any("new")).expect("address")[0];
    assert_ne!(old, new);
    assert_eq!(b.addresses_of("old"), [old], "until its DEL");
    let found = check(&observed(&store), (&node_name("b"), None), b.held(), &[], true);
    let of_old: Vec<_> = found.iter().filter(|finding| finding.subject == old.to_string()).collect();
    let blocks = observed(&store).blocks;
    let again_its_own = blocks.values().any(|block| block.node == node_name("b") && block.cidr.has(old));
    assert!(again_its_own || of_old.iter().any(|finding| finding.message.contains("in no block")), "{found:?}");
}

#[test]
fn what_others_borrowed_stays_theirs_and_what_was_borrowed_goes_back() {
    let (directory, store) = directory(&["a", "b"], &pool("four", "10.1.0.0/26"));
    let (mut a, mut b) = (allocator("a"), allocator("b"));
    a.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("of its block");
    let borrowed = b.allocate(&store, &observed(&store), &AddressRequest::any("y")).expect("borrowed")[0];
    let start = Instant::now();
    // First the borrower goes.
    directory.remove("node-b.yaml");
    let mut seen_by_a = VanishedNodes::new(node_name("a"));
    look(&mut seen_by_a, &store, start);
    assert_eq!(look(&mut seen_by_a, &store, start + GONE_BEFORE_COLLECTED).changed.len(), 1);
    let block = observed(&store).blocks.into_values().next().expect("the block of a");
    let offset = block.offset(borrowed).expect("its place");
    assert!(block.assigned.is_empty() && block.lendable.has(offset), "{block:?}");
    // Then it is back, borrows again, and the lender goes.
    directory.write("node-b.yaml", &node("b", &["192.0.2.2"]));
    let mut b = allocator("b");
    let borrowed = b.allocate(&store, &observed(&store), &AddressRequest::any("z")).expect("borrowed")[0];
    directory.remove("node-a.yaml");
    let mut seen_by_b = VanishedNodes::new(node_name("b"));
    look(&mut seen_by_b, &store, start);
    let done = look(&mut seen_by_b, &store, start + GONE_BEFORE_COLLECTED);
    assert_eq!((done.blocks.len(), done.changed.len()), (0, 1));
    let block = observed(&store).blocks.into_values().next().expect("it stays");
    assert_eq!((block.assigned.keys().collect::<Vec<_>>(), block.lendable.count()), (vec![&borrowed], 62));
    // All of it may be had, but the first, which nobody gets, and the one in use.
    let many = (0..100)
        .map_while(|pod| b.allocate(&store, &observed(&store), &AddressRequest::any(&format!("many-{pod}"))).ok());
    assert_eq!(many.count(), 62);
    // Once the borrower needs nothing more, the block goes.
    (0..100).for_each(|pod| drop(b.release(&format!("many-{pod}"))));
    b.release("z");
    b.maintain(&store, &observed(&store), &[], start);
    let later = start + 2 * GONE_BEFORE_COLLECTED;
    assert_eq!(look(&mut seen_by_b, &store, later).blocks.len(), 1);
}

#[test]
fn an_address_kept_for_a_pod_stays_kept_until_its_set_is_smaller() {
    let (directory, store) = directory(&["a", "b", "gone"], &pool("four", "10.1.0.0/24"));
    let set = |replicas: u32| {
        let text = format!(
            "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: shop}}\nspec: {{replicas: {replicas}}}\n"
        );
        directory.write("set.yaml", &text);
    };
    set(1);
    let pod = PodName::new("shop", "db-0").expect("name");
    let of_set = |holder| AddressRequest { pod: Some(&pod), stateful_set: Some("db"), ..AddressRequest::any(holder) };
    let kept = allocator("gone").allocate(&store, &observed(&store), &of_set("s1")).expect("address");
    directory.remove("node-gone.yaml");
    let (mut vanished, start) = (VanishedNodes::new(node_name("a")), Instant::now());
    look(&mut vanished, &store, start);
    let at = start + GONE_BEFORE_COLLECTED + EVERYBODY;
    assert_eq!(look(&mut vanished, &store, at).changed.len(), 1);
    let of_gone = |cluster: &Cluster| cluster.blocks.values().filter(|block| block.node == node_name("gone")).count();
    assert_eq!(of_gone(&observed(&store)), 1);
    let mut b = allocator("b");
    assert_eq!(b.allocate(&store, &observed(&store), &of_set("s2")).expect("moved"), kept);
    assert!(look(&mut vanished, &store, at + EVERYBODY).blocks.is_empty(), "b has a pod there");
    b.release("s2");
    set(0);
    b.maintain(&store, &observed(&store), &[], start);
    assert_eq!(look(&mut vanished, &store, at + 2 * EVERYBODY).blocks.len(), 1);
    assert_eq!(of_gone(&observed(&store)), 0);
}

#[test]
fn one_node_does_it_and_the_next_when_that_one_does_not() {
    let names: Vec<String> = (0..20).map(|number| format!("n{number}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("gone");
    let (directory, store) = directory(&all, &pool("four", "10.1.0.0/24"));
    allocator("gone").allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("address");
    directory.remove("node-gone.yaml");
    let (cluster, start) = (observed(&store), Instant::now());
    let mut looking: Vec<VanishedNodes> = names.iter().map(|name| VanishedNodes::new(node_name(name))).collect();
    // A store that answers and counts, and in which nothing changes.
    let still = Still { store: &store, deletions: AtomicUsize::new(0), answers: true };
    let mut asked = Vec::new();
    for waited in [Duration::ZERO, GONE_BEFORE_COLLECTED, GONE_BEFORE_COLLECTED + BETWEEN_RANKS] {
        looking.iter_mut().for_each(|node| drop(node.collect(&still, &cluster, start + waited)));
        asked.push(still.deletions.load(Ordering::Relaxed));
    }
    assert_eq!(asked, [0, 1, 2]);
    looking.iter_mut().for_each(|node| drop(node.collect(&still, &cluster, start + GONE_BEFORE_COLLECTED + EVERYBODY)));
    assert_eq!(still.deletions.load(Ordering::Relaxed), 2 + 9 + 1, "the ranks up to the tenth, and the first again");
    // A node that is not one of the cluster's keeps out of it, and of itself no node thinks so.
    for outsider in ["stranger", "gone"] {
        let mut outsider = VanishedNodes::new(node_name(outsider));
        look(&mut outsider, &store, start);
        assert!(look(&mut outsider, &store, start + 2 * GONE_BEFORE_COLLECTED).blocks.is_empty());
    }
}

#[test]
fn two_agents_at_once_free_everything_once() {
    let names: Vec<String> = (0..8).map(|number| format!("gone-{number}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.extend(["a", "b"]);
    let (directory, store) = directory(&all, &pool("four", "10.1.0.0/22"));
    for name in &names {
        allocator(name).allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("address");
        directory.remove(&format!("node-{name}.yaml"));
    }
    let (cluster, start) = (observed(&store), Instant::now());
    let freed: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = ["a", "b"]
            .map(|name| {
                let (directory, cluster) = (&directory, &cluster);
                scope.spawn(move || {
                    let (store, mut vanished) = (directory.store(), VanishedNodes::new(node_name(name)));
                    vanished.collect(&store, cluster, start);
                    let done = vanished.collect(&store, cluster, start + GONE_BEFORE_COLLECTED + EVERYBODY);
                    assert!(done.errors.is_empty(), "{:?}", done.errors);
                    done.blocks.len()
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    });
    assert_eq!(freed.iter().sum::<usize>(), names.len(), "{freed:?}");
    assert!(store.list(&IP_BLOCK).expect("list").is_empty());
}

#[test]
fn a_server_that_does_not_answer_ends_a_round() {
    let (directory, store) = directory(&["a", "g0", "g1", "g2"], &pool("four", "10.1.0.0/24"));
    for name in ["g0", "g1", "g2"] {
        allocator(name).allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("address");
        directory.remove(&format!("node-{name}.yaml"));
    }
    let away = Still { store: &store, deletions: AtomicUsize::new(0), answers: false };
    let (mut vanished, start, cluster) = (VanishedNodes::new(node_name("a")), Instant::now(), observed(&store));
    look(&mut vanished, &store, start);
    let done = vanished.collect(&away, &cluster, start + GONE_BEFORE_COLLECTED);
    assert!(matches!(&done.errors[..], [error] if error.is_unreachable()), "{:?}", done.errors);
    assert_eq!(away.deletions.load(Ordering::Relaxed), 1);
    assert_eq!(look(&mut vanished, &store, start + GONE_BEFORE_COLLECTED).blocks.len(), 3);
    // Of what a node gives back itself, too.
    let (mut a, mut b) = (allocator("a"), allocator("b"));
    let (_other, store) = self::directory(&["a", "b"], &pool("four", "10.1.0.0/26"));
    a.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("address");
    for pod in ["p0", "p1", "p2"] {
        b.allocate(&store, &observed(&store), &AddressRequest::any(pod)).expect("borrowed");
    }
    ["p0", "p1", "p2"].iter().for_each(|pod| drop(b.release(pod)));
    let away = Still { store: &store, deletions: AtomicUsize::new(0), answers: false };
    let done = b.maintain(&away, &observed(&store), &[], start);
    assert!(done.is_cut_short() && done.errors.len() == 1, "{:?}", done.errors);
    assert!(matches!(done.errors[0], IpamError::Store { .. }), "{:?}", done.errors);
    assert_eq!(b.maintain(&store, &observed(&store), &[], start).given_back.len(), 3);
}

/// A store in which nothing is ever written: it says so, or does not answer.
struct Still<'a> {
    store: &'a DirectoryStore,
    deletions: AtomicUsize,
    answers: bool,
}

impl Still<'_> {
    fn refuse(&self, key: ObjectKey) -> StoreError {
        if self.answers {
            return StoreError::NotFound { key: Box::new(key) };
        }
        StoreError::Unreachable { server: "https://192.0.2.9".into(), message: "no answer".into() }
    }
}

impl ObjectStore for Still<'_> {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        self.store.get(key)
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        self.store.list(kind)
    }

    fn create(&self, _object: &serde_json::Value) -> Result<Object, StoreError> {
        Err(self.refuse(ObjectKey::cluster_scoped(IP_BLOCK, "new")))
    }

    fn update(&self, _object: &serde_json::Value, _version: &str) -> Result<Object, StoreError> {
        Err(self.refuse(ObjectKey::cluster_scoped(IP_BLOCK, "old")))
    }

    fn delete(&self, key: &ObjectKey, _version: &str) -> Result<(), StoreError> {
        self.deletions.fetch_add(1, Ordering::Relaxed);
        Err(self.refuse(key.clone()))
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        self.store.watch(kinds)
    }
}
