//! Many nodes at one store: no address twice, next to none stranded, and nothing lost when they go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_control::cluster::Cluster;
use millrace_control::ipam::{AddressAllocator, AddressRequest, EMPTY_BEFORE_RETURN, IpamError};
use millrace_control::observe::{IP_BLOCK, KINDS, Observed};
use millrace_control::store::{DirectoryStore, Event, ObjectStore};

use crate::support::{TestDirectory, node_name, pool};

/// The cluster as the store has it at this moment.
pub(crate) fn observed(store: &dyn ObjectStore) -> Cluster {
    let mut observed = Observed::default();
    for kind in &KINDS {
        store.list(kind).expect("list").into_iter().for_each(|object| observed.take(Event::Applied(object)));
    }
    observed.take(Event::Synced);
    observed.cluster().clone()
}

struct Node {
    number: usize,
    allocator: AddressAllocator,
    store: Arc<DirectoryStore>,
    held: Vec<IpAddr>,
}

impl Node {
    fn new(store: &Arc<DirectoryStore>, number: usize) -> Self {
        let allocator = AddressAllocator::new(node_name(&format!("node-{number}")));
        Self { number, allocator, store: Arc::clone(store), held: Vec::new() }
    }

    /// Takes at most `count` addresses; stops where there are none.
    fn take(&mut self, cluster: &Cluster, count: usize) {
        for _ in 0..count {
            let holder = format!("pod-{}-{}", self.number, self.held.len());
            match self.allocator.allocate(self.store.as_ref(), cluster, &AddressRequest::any(&holder)) {
                Ok(addresses) => self.held.extend(addresses),
                Err(IpamError::Exhausted { .. }) => return,
                Err(error) => panic!("node {}: {error}", self.number),
            }
        }
    }
}

fn at_once(nodes: &mut [Node], act: impl Fn(&mut Node) + Sync) {
    std::thread::scope(|scope| nodes.iter_mut().for_each(|node| drop(scope.spawn(|| act(node)))));
}

/// Who has each address; panics if two have one.
fn owners(nodes: &[Node]) -> BTreeMap<IpAddr, usize> {
    let mut owners = BTreeMap::new();
    for node in nodes {
        for address in &node.held {
            assert_eq!(owners.insert(*address, node.number), None, "{address} was given twice");
        }
    }
    owners
}

/// 32 blocks of 64 addresses for 100 nodes that take as they like: 68 nodes get no block at all. What is left over in
/// the end are the first addresses of the blocks, which are the nodes' own, and little else.
#[test]
fn a_hundred_nodes_share_a_pool_to_its_last_address_and_leave_nothing_behind() {
    const POOL: usize = 2048;
    let directory = TestDirectory::new();
    directory.write("pool.yaml", &pool("four", "10.1.0.0/21"));
    let store = directory.store();
    let cluster = observed(&store);
    // What several processes are to each other, several stores on one directory are.
    let stores: Vec<Arc<DirectoryStore>> = (0..4).map(|_| Arc::new(directory.store())).collect();
    let mut nodes: Vec<Node> = (0..100).map(|number| Node::new(&stores[number % 4], number)).collect();
    at_once(&mut nodes, |node| node.take(&cluster, 1 + node.number * 7 % 15));
    owners(&nodes);
    // Nodes that have enough offer what they do not need, and the others go on.
    let (cluster, start) = (observed(&store), Instant::now());
    at_once(&mut nodes, |node| {
        let done = node.allocator.maintain(node.store.as_ref(), &cluster, &[], start);
        assert!(done.errors.is_empty() && done.returned.is_empty(), "{done:?}");
    });
    let cluster = observed(&store);
    at_once(&mut nodes, |node| {
        if node.number % 2 == 0 {
            node.take(&cluster, POOL)
        }
    });
    let given = owners(&nodes).len();
    let stranded = POOL - given;
    println!("{given} of {POOL} addresses given, {:.2} % stranded", stranded as f64 * 100.0 / POOL as f64);
    assert!(stranded * 100 < POOL * 2, "{stranded} of {POOL} addresses are stranded");

    let cluster = observed(&store);
    at_once(&mut nodes, |node| {
        for pod in 0..node.held.len() {
            node.allocator.release(&format!("pod-{}-{pod}", node.number));
        }
        node.held.clear();
        node.allocator.maintain(node.store.as_ref(), &cluster, &[], start);
    });
    let cluster = observed(&store);
    assert!(cluster.blocks.values().all(|block| block.assigned.is_empty()), "every borrowed address is back");
    assert_eq!(store.list(&IP_BLOCK).expect("list").len(), 32, "nobody has returned the block of its own address");
}

/// A random run on few addresses. After each step: nobody has another's address, and what is in use lies in a block
/// of its node or is assigned to it. In the end everything but each node's first block comes back.
#[test]
fn whatever_nodes_do_what_is_in_use_stays_theirs() {
    let directory = TestDirectory::new();
    let text = pool("four", "10.1.0.0/24").replace("\"10.1.0.0/24\"", "\"10.1.0.0/24\", blockSize: 27");
    directory.write("pool.yaml", &text);
    let store = directory.store();
    let shared = Arc::new(directory.store());
    let mut nodes: Vec<Node> = (0..5).map(|number| Node::new(&shared, number)).collect();
    let mut pods: Vec<(usize, String)> = Vec::new();
    let (mut now, mut seed, mut returned, mut given_back) = (Instant::now(), 11u64, 0, 0);
    let mut old = observed(&store);
    for step in 0..1_600 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (choice, node) = (seed >> 60, (seed >> 40) as usize % nodes.len());
        // Nodes see the objects late: as they were up to some steps ago.
        if seed >> 33 & 3 == 0 {
            old = observed(&store);
        }
        let crowded = step / 400 % 2 == 0;
        let Node { allocator, store, .. } = &mut nodes[node];
        if choice < if crowded { 12 } else { 2 } {
            let holder = format!("pod-{step}");
            match allocator.allocate(store.as_ref(), &old, &AddressRequest::any(&holder)) {
                Ok(_) => pods.push((node, holder)),
                Err(IpamError::Exhausted { .. }) => {}
                Err(error) => panic!("step {step}: {error}"),
            }
        } else if choice < 14 && !pods.is_empty() {
            let (node, holder) = pods.swap_remove((seed >> 20) as usize % pods.len());
            nodes[node].allocator.release(&holder);
        } else {
            now += Duration::from_secs(60 + (seed >> 10) % 120);
            let done = allocator.maintain(store.as_ref(), &old, &[], now);
            assert!(done.errors.is_empty(), "step {step}: {done:?}");
            returned += done.returned.len();
            given_back += done.given_back.len();
        }
        check(&nodes, &observed(shared.as_ref()), step);
    }
    assert!(returned >= 3 && given_back > 10, "the run does what it is for: {returned} {given_back}");
    for (node, holder) in pods {
        nodes[node].allocator.release(&holder);
    }
    for _ in 0..4 {
        now += EMPTY_BEFORE_RETURN;
        for node in &mut nodes {
            node.allocator.maintain(node.store.as_ref(), &observed(&store), &[], now);
        }
    }
    let cluster = observed(&store);
    assert!(cluster.blocks.len() <= nodes.len(), "each node keeps the block of its own address: {:?}", cluster.blocks);
    assert!(cluster.blocks.values().all(|block| block.assigned.is_empty()));
}

fn check(nodes: &[Node], cluster: &Cluster, step: usize) {
    let mut seen = BTreeMap::new();
    for node in nodes {
        let name = node_name(&format!("node-{}", node.number));
        for address in node.allocator.held().keys() {
            assert_eq!(seen.insert(*address, node.number), None, "step {step}: {address} twice");
            let block = cluster.blocks.values().find(|block| block.cidr.has(*address));
            let block = block.unwrap_or_else(|| panic!("step {step}: {address} is in use and in no block"));
            let owner = block.assigned.get(address).map_or(&block.node, |entry| &entry.node);
            assert_eq!(*owner, name, "step {step}: {address}");
            assert_ne!(block.offset(*address), Some(0), "step {step}: the node's own address");
            let lendable = block.offset(*address).is_some_and(|offset| block.lendable.has(offset));
            assert!(!lendable, "step {step}: {address} is in use and may be borrowed");
        }
    }
}
