//! Blocks and addresses: nobody gets what another has, whoever else is claiming.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_control::cluster::Cluster;
use millrace_control::ipam::{AddressAllocator, AddressRequest, IpamError};
use millrace_control::observe::IP_BLOCK;
use millrace_control::store::ObjectStore;

use crate::support::{TestDirectory, address, block, cluster, node_name, pool};

fn pools(text: &[(&str, &str)]) -> Cluster {
    cluster(&text.iter().map(|(name, cidr)| pool(name, cidr)).collect::<String>())
}

fn text(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn twenty_nodes_claiming_at_once_never_share_a_block() {
    let directory = TestDirectory::new();
    // 24 blocks for 20 nodes: collisions are certain.
    let cluster = pools(&[("four", "10.1.0.0/21"), ("six", "fd00:10:1::/117")]);
    let given: Vec<(usize, Vec<IpAddr>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|number| {
                let (directory, cluster) = (&directory, &cluster);
                scope.spawn(move || {
                    let mut allocator = AddressAllocator::new(node_name(&format!("node-{number}")));
                    let store = directory.store();
                    let addresses = (0..3).flat_map(|pod| {
                        allocator
                            .allocate(&store, cluster, &AddressRequest::any(&format!("pod-{pod}")))
                            .expect("addresses")
                    });
                    (number, addresses.collect())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    });
    let mut owners = BTreeMap::new();
    for (number, addresses) in given {
        assert_eq!(addresses.len(), 6);
        for address in addresses {
            assert_eq!(owners.insert(address, number), None, "{address}");
        }
    }
    let blocks = directory.store().list(&IP_BLOCK).expect("list");
    let prefixes: BTreeSet<String> = blocks.iter().map(|block| block.to_json()["spec"]["cidr"].to_string()).collect();
    assert_eq!((blocks.len(), prefixes.len()), (40, 40));
}

#[test]
fn addresses_come_lowest_first_and_the_first_of_a_block_is_kept() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let cluster = pools(&[("four", "10.1.0.0/26"), ("six", "fd00::/122")]);
    let mut allocator = AddressAllocator::new(node_name("a"));
    let mut allocate =
        |holder: &str| text(&allocator.allocate(&store, &cluster, &AddressRequest::any(holder)).expect("addresses"));
    assert_eq!(allocate("x"), ["10.1.0.1", "fd00::1"]);
    assert_eq!(allocate("y"), ["10.1.0.2", "fd00::2"]);
    assert_eq!(allocate("x"), ["10.1.0.1", "fd00::1"], "the same holder again");
    assert_eq!(text(&allocator.release("x")), ["10.1.0.1", "fd00::1"]);
    assert!(allocator.release("x").is_empty(), "twice is no error");
    let again = allocator.allocate(&store, &cluster, &AddressRequest::any("z")).expect("addresses");
    assert_eq!(text(&again), ["10.1.0.1", "fd00::1"]);
}

#[test]
fn the_last_address_is_as_good_as_any_and_then_the_pool_is_named() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let cluster = pools(&[("small", "10.1.0.0/28")]);
    let mut allocator = AddressAllocator::new(node_name("a"));
    let all: Vec<_> = (0..15)
        .flat_map(|pod| {
            allocator.allocate(&store, &cluster, &AddressRequest::any(&format!("p{pod}"))).expect("address")
        })
        .collect();
    assert_eq!(all.last().copied(), Some(address("10.1.0.15")));
    let error = allocator.allocate(&store, &cluster, &AddressRequest::any("one more")).expect_err("exhausted");
    assert_eq!(error.to_string(), "all addresses are in use: pool small of node a is exhausted");
    allocator.release("p7");
    assert_eq!(
        text(&allocator.allocate(&store, &cluster, &AddressRequest::any("one more")).expect("address")),
        ["10.1.0.8"]
    );
}

#[test]
fn one_family_without_addresses_gives_none_of_the_other() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let cluster = pools(&[("four", "10.1.0.0/24"), ("six", "fd00::/127")]);
    let mut allocator = AddressAllocator::new(node_name("a"));
    allocator.allocate(&store, &cluster, &AddressRequest::any("x")).expect("addresses");
    assert!(matches!(
        allocator.allocate(&store, &cluster, &AddressRequest::any("y")),
        Err(IpamError::Exhausted { .. })
    ));
    assert!(allocator.addresses_of("y").is_empty());
    let used: Vec<usize> = allocator.blocks().map(|(_, used, _)| used).collect();
    assert_eq!(used, [1, 1]);
}

#[test]
fn after_a_restart_the_same_blocks_are_used_and_recorded_addresses_stay_taken() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let cluster = pools(&[("four", "10.1.0.0/16")]);
    let mut before = AddressAllocator::new(node_name("a"));
    let given = before.allocate(&store, &cluster, &AddressRequest::any("x")).expect("address");
    let mut after = AddressAllocator::new(node_name("a"));
    after.restore("x", given[0]).expect("restore");
    assert!(matches!(after.restore("other", given[0]), Err(IpamError::HeldTwice { .. })));
    let next = after.allocate(&store, &cluster, &AddressRequest::any("y")).expect("address");
    assert_ne!(next, given);
    assert_eq!(after.allocate(&store, &cluster, &AddressRequest::any("x")).expect("address"), given);
    assert_eq!(store.list(&IP_BLOCK).expect("list").len(), 1);
}

#[test]
fn a_claim_of_another_size_is_stepped_over() {
    let directory = TestDirectory::new();
    // All of an enormous pool but its last /122 is claimed, in two pieces of other sizes.
    let mut claims = String::new();
    for length in 49..=122u32 {
        let halves = u128::from_str_radix("fd00", 16).expect("number") << 112;
        let first: u128 = (49..length).fold(halves, |bits, taken| bits | 1 << (128 - taken));
        let first: std::net::Ipv6Addr = first.into();
        claims += &block(&format!("claim-{length}"), &format!("{first}/{length}"), "six", "b");
    }
    directory.write("claims.yaml", &claims);
    let cluster = pools(&[("six", "fd00::/48")]);
    let mut allocator = AddressAllocator::new(node_name("a"));
    let given = allocator.allocate(&directory.store(), &cluster, &AddressRequest::any("x")).expect("address");
    assert_eq!(text(&given), ["fd00::ffff:ffff:ffff:ffff:ffc1"]);
    let mut other = AddressAllocator::new(node_name("c"));
    let given = other.allocate(&directory.store(), &cluster, &AddressRequest::any("x")).expect("address");
    assert_eq!(text(&given), ["fd00::ffff:ffff:ffff:ffff:ffff"], "borrowed, since no block is free");
}

#[test]
fn a_block_object_that_cannot_be_read_is_neither_ours_nor_free() {
    let directory = TestDirectory::new();
    directory.write("millrace.dev_v1alpha1.ipblock.10-1-0-0-26.yaml", "{ broken");
    let cluster = pools(&[("four", "10.1.0.0/26")]);
    let mut allocator = AddressAllocator::new(node_name("a"));
    let error = allocator.allocate(&directory.store(), &cluster, &AddressRequest::any("x")).expect_err("refused");
    assert!(matches!(error, IpamError::Store { .. }), "{error}");
}

#[test]
fn a_block_that_was_taken_away_gives_no_more_addresses() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let pool_text = pool("four", "10.1.0.0/24");
    let mut allocator = AddressAllocator::new(node_name("a"));
    let first = allocator.allocate(&store, &cluster(&pool_text), &AddressRequest::any("x")).expect("address")[0];
    let claimed = store.list(&IP_BLOCK).expect("list").remove(0);
    let prefix = claimed.to_json()["spec"]["cidr"].as_str().expect("cidr").to_owned();
    // The cluster has not heard of the claim yet, then it has: the block stays in use.
    let known = cluster(&(pool_text.clone() + &block(&claimed.key.name, &prefix, "four", "a")));
    let second = allocator.allocate(&store, &known, &AddressRequest::any("y")).expect("address")[0];
    assert_eq!(allocator.blocks().count(), 1);
    // Somebody deletes the object: another block is claimed, what is in use stays held.
    store.delete(&claimed.key, &claimed.resource_version).expect("delete");
    let taken = block(&claimed.key.name, &prefix, "four", "b");
    directory.write("taken.yaml", &taken);
    let third =
        allocator.allocate(&store, &cluster(&(pool_text + &taken)), &AddressRequest::any("z")).expect("address")[0];
    let lost: ipnet::IpNet = prefix.parse().expect("prefix");
    assert!(lost.contains(&first) && lost.contains(&second) && !lost.contains(&third), "{prefix} {third}");
    assert_eq!(allocator.addresses_of("x"), [first]);
}

#[test]
fn without_a_pool_there_are_no_addresses() {
    let directory = TestDirectory::new();
    let mut allocator = AddressAllocator::new(node_name("a"));
    let refused = allocator.allocate(&directory.store(), &Cluster::default(), &AddressRequest::any("x"));
    assert!(matches!(refused, Err(IpamError::NoPool)));
}

#[test]
fn nodes_prefer_different_blocks() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let cluster = pools(&[("four", "10.0.0.0/12")]);
    let firsts: BTreeSet<IpAddr> = (0..50)
        .map(|number| {
            let mut allocator = AddressAllocator::new(node_name(&format!("worker-{number}")));
            let given = allocator.allocate(&store, &cluster, &AddressRequest::any("x")).expect("address")[0];
            // Given back at once: each node chooses as if it were alone.
            store.list(&IP_BLOCK).expect("list").iter().for_each(|block| {
                store.delete(&block.key, &block.resource_version).expect("delete");
            });
            given
        })
        .collect();
    assert!(firsts.len() > 45, "{} of 50 nodes would meet nobody", firsts.len());
}
