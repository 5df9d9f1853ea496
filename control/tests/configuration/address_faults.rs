//! The process dies at each write to the store, before it or right behind it: what it had taken and not recorded comes
//! back, what it had recorded stays.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_control::cluster::PodName;
use millrace_control::ipam::{AddressAllocator, AddressRequest, EMPTY_BEFORE_RETURN, IpamError};
use millrace_control::store::{DirectoryStore, Kind, Object, ObjectKey, ObjectStore, StoreError, Watch};

use crate::address_crowd::observed;
use crate::support::{TestDirectory, node_name, pool};

/// A store that fails from the write of a number on; that one write is done or not before it fails.
struct DyingStore<'a> {
    store: &'a DirectoryStore,
    writes: AtomicUsize,
    dies_at: usize,
    written: bool,
}

impl DyingStore<'_> {
    fn write<T>(&self, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if number < self.dies_at {
            return act();
        }
        if number == self.dies_at && self.written {
            act()?;
        }
        Err(StoreError::Locked { path: "dead".into(), seconds: 0 })
    }
}

impl ObjectStore for DyingStore<'_> {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        self.store.get(key)
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        self.store.list(kind)
    }

    fn create(&self, object: &serde_json::Value) -> Result<Object, StoreError> {
        self.write(|| self.store.create(object))
    }

    fn update(&self, object: &serde_json::Value, resource_version: &str) -> Result<Object, StoreError> {
        self.write(|| self.store.update(object, resource_version))
    }

    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError> {
        self.write(|| self.store.delete(key, resource_version))
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        self.store.watch(kinds)
    }
}

/// What a node does in its life: claims, takes more of its block, borrows, keeps for a pod, asks for the very address,
/// gives back. Returns what it had recorded when it died, or all at the end.
fn live(store: &dyn ObjectStore) -> (Vec<(String, IpAddr)>, Result<(), IpamError>) {
    let mut allocator = AddressAllocator::new(node_name("a"));
    let mut recorded: Vec<(String, IpAddr)> = Vec::new();
    let pod = PodName::new("shop", "db-0").expect("name");
    let outcome = (|| {
        for number in 0..34 {
            let holder = format!("pod-{number}");
            let fixed = ["10.1.0.30".parse().expect("address")];
            let request = match number {
                17 => AddressRequest { pod: Some(&pod), stateful_set: Some("db"), ..AddressRequest::any(&holder) },
                18 => AddressRequest { fixed: &fixed, ..AddressRequest::any(&holder) },
                _ => AddressRequest::any(&holder),
            };
            let given = allocator.allocate(store, &observed(store), &request)?;
            recorded.extend(given.into_iter().map(|address| (holder.clone(), address)));
        }
        for number in [3, 17, 33] {
            let holder = format!("pod-{number}");
            allocator.release(&holder);
            recorded.retain(|(other, _)| *other != holder);
        }
        let done = allocator.maintain(store, &observed(store), &[], Instant::now());
        done.errors.into_iter().next().map_or(Ok(()), Err)
    })();
    (recorded, outcome)
}

#[test]
fn a_process_that_dies_at_any_write_loses_nothing() {
    let mut finished = 0;
    for dies_at in 0..100 {
        for written in [false, true] {
            let directory = TestDirectory::new();
            // One block for two nodes: half of it in use by the other, so that this one claims nothing and borrows.
            let two = pool("four", "10.1.0.0/26").replace("\"10.1.0.0/26\"", "\"10.1.0.0/26\", blockSize: 27");
            directory.write("pool.yaml", &two);
            let store = directory.store();
            let mut other = AddressAllocator::new(node_name("b"));
            other.allocate(&store, &observed(&store), &AddressRequest::any("of-b")).expect("a block");
            let dying = DyingStore { store: &store, writes: AtomicUsize::new(0), dies_at, written };
            let (recorded, outcome) = live(&dying);
            finished += usize::from(outcome.is_ok());

            // The next process knows what was recorded, and gives the rest back.
            let mut next = AddressAllocator::new(node_name("a"));
            for (holder, address) in &recorded {
                next.restore(holder, *address).expect("recorded once");
            }
            let mut now = Instant::now();
            for _ in 0..3 {
                let done = next.maintain(&store, &observed(&store), &[], now);
                assert!(done.errors.is_empty(), "write {dies_at}: {done:?}");
                now += EMPTY_BEFORE_RETURN + Duration::from_secs(1);
            }
            let cluster = observed(&store);
            for block in cluster.blocks.values() {
                for (address, entry) in &block.assigned {
                    let held = recorded.iter().any(|(_, recorded)| recorded == address);
                    assert!(entry.node == node_name("a") && held, "write {dies_at}: {address} is lost to {entry:?}");
                }
            }
            for (_, address) in &recorded {
                let block = cluster.blocks.values().find(|block| block.cidr.has(*address)).expect("a block");
                let owner = block.assigned.get(address).map_or(&block.node, |entry| &entry.node);
                assert_eq!(*owner, node_name("a"), "write {dies_at}: {address} is in use and not ours");
            }
            // Every address that nobody holds can be had: by us, or by the other.
            let mut had = recorded.len() + 1;
            for number in 0..64 {
                let holder = format!("more-{number}");
                for allocator in [&mut next, &mut other] {
                    match allocator.allocate(&store, &observed(&store), &AddressRequest::any(&holder)) {
                        Ok(given) => had += given.len(),
                        Err(error) => assert!(matches!(error, IpamError::Exhausted { .. }), "{error}"),
                    }
                }
            }
            let blocks = observed(&store).blocks.len();
            assert_eq!(had, 64 - blocks, "write {dies_at}, written {written}: of 64 without the nodes' own");
        }
        if finished >= 2 {
            assert!(dies_at > 6, "the life has {dies_at} writes, too few to show anything");
            return;
        }
    }
    panic!("the life does not end");
}
