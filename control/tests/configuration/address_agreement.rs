//! Single addresses: borrowed, asked for, kept for a pod, chosen by pool; where they are routed; what is lost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millrace_control::cluster::{Cluster, PodName, PoolName};
use millrace_control::ipam::check::{Attached, FindingKind, check};
use millrace_control::ipam::{AddressAllocator, AddressRequest, AddressSource, EMPTY_BEFORE_RETURN, IpamError};
use millrace_control::observe::IP_BLOCK;
use millrace_control::plan::plan;
use millrace_control::store::{DirectoryStore, ObjectStore};
use millrace_engine::tables::RouteTarget;

use crate::address_crowd::observed;
use crate::support::{TestDirectory, address, attached, cluster, local, node, node_name, pool};

fn pool_with(name: &str, cidr: &str, more: &str) -> String {
    pool(name, cidr).replace(&format!("\"{cidr}\""), &format!("\"{cidr}\", {more}"))
}

fn directory(pools: &str) -> (TestDirectory, DirectoryStore) {
    let directory = TestDirectory::new();
    directory.write("pools.yaml", pools);
    let store = directory.store();
    (directory, store)
}

fn allocator(name: &str) -> AddressAllocator {
    AddressAllocator::new(node_name(name))
}

fn fixed<'a>(holder: &'a str, fixed: &'a [IpAddr]) -> AddressRequest<'a> {
    AddressRequest { fixed, ..AddressRequest::any(holder) }
}

fn refused(outcome: Result<Vec<IpAddr>, IpamError>) -> String {
    outcome.expect_err("refused").to_string()
}

#[test]
fn a_borrowed_address_is_routed_to_its_borrower_by_everybody_and_goes_back() {
    let (_directory, store) = directory(&pool("four", "10.1.0.0/26"));
    let (mut a, mut b) = (allocator("a"), allocator("b"));
    a.allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("of its own block");
    let borrowed = b.allocate(&store, &observed(&store), &AddressRequest::any("y")).expect("borrowed")[0];
    assert_eq!(borrowed, address("10.1.0.63"), "of the highest, since its node takes the lowest");

    let nodes = node("a", &["192.0.2.1"]) + &node("b", &["192.0.2.2"]) + &node("c", &["192.0.2.3"]);
    let objects = TestDirectory::new();
    objects.write("nodes.yaml", &nodes);
    let mut cluster = observed(&store);
    cluster.nodes = observed(&objects.store()).nodes;
    let target = |node: &str, pods: &[_]| {
        let mut local = local(pods, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        local.node = node_name(node);
        let planned = plan(&cluster, &local);
        assert!(planned.problems.is_empty(), "{:?}", planned.problems);
        let routes = &planned.plan.segments.values().next().expect("a segment").routes;
        routes.get(&borrowed.into()).expect("a route of its own").target.clone()
    };
    for other in ["a", "c"] {
        let RouteTarget::Tunnel { peer, .. } = target(other, &[]) else { panic!("{other} sends it elsewhere") };
        assert_eq!(peer, address("192.0.2.2"), "{other}");
    }
    assert!(matches!(target("b", &[attached(20, "y", &["10.1.0.63"])]), RouteTarget::Port { .. }));
    assert_eq!(target("b", &[]), RouteTarget::Unreachable, "without a pod it does not travel back and forth");

    b.release("y");
    let done = b.maintain(&store, &observed(&store), &[], Instant::now());
    assert_eq!(done.given_back, [borrowed]);
    assert!(observed(&store).blocks.values().all(|block| block.assigned.is_empty()));
}

#[test]
fn what_a_killed_process_borrowed_goes_back_and_what_is_recorded_stays() {
    let (_directory, store) = directory(&pool("four", "10.1.0.0/26"));
    allocator("a").allocate(&store, &observed(&store), &AddressRequest::any("x")).expect("its own");
    let mut before = allocator("b");
    let kept = before.allocate(&store, &observed(&store), &AddressRequest::any("y")).expect("borrowed")[0];
    let lost = before.allocate(&store, &observed(&store), &AddressRequest::any("z")).expect("borrowed")[0];
    let mut after = allocator("b");
    after.restore("y", kept).expect("recorded");
    let done = after.maintain(&store, &observed(&store), &[], Instant::now());
    assert_eq!(done.given_back, [lost]);
    let assigned = |cluster: &Cluster| cluster.blocks.values().next().expect("a block").assigned.len();
    assert_eq!(assigned(&observed(&store)), 1);
    after.release("y");
    assert_eq!(after.maintain(&store, &observed(&store), &[], Instant::now()).given_back, [kept]);
}

#[test]
fn an_empty_block_is_returned_after_a_while_and_never_while_something_of_it_is_in_use() {
    let (_directory, store) = directory(&pool_with("four", "10.1.0.0/24", "blockSize: 28"));
    let mut a = allocator("a");
    for pod in 0..20 {
        a.allocate(&store, &observed(&store), &AddressRequest::any(&format!("p{pod}"))).expect("address");
    }
    let blocks = || store.list(&IP_BLOCK).expect("list").len();
    assert_eq!(blocks(), 2);
    // The first block by name has the node's own address; the pods of the other leave.
    let cluster = observed(&store);
    let other = cluster.blocks.values().next_back().expect("two blocks").cidr;
    let holders: Vec<String> =
        a.held().iter().filter(|(address, _)| other.has(**address)).map(|(_, holder)| holder.clone()).collect();
    let (last, others) = holders.split_last().expect("it has pods");
    others.iter().for_each(|holder| drop(a.release(holder)));
    let start = Instant::now();
    assert!(a.maintain(&store, &cluster, &[], start).returned.is_empty());
    assert!(a.maintain(&store, &cluster, &[], start + 2 * EMPTY_BEFORE_RETURN).returned.is_empty(), "one is in use");
    a.release(last);
    let empty = start + 3 * EMPTY_BEFORE_RETURN;
    assert!(a.maintain(&store, &cluster, &[], empty).returned.is_empty(), "it is not empty for long");
    let again = a.allocate(&store, &cluster, &AddressRequest::any("again")).expect("address")[0];
    let almost = empty + EMPTY_BEFORE_RETURN - Duration::from_secs(1);
    assert!(a.maintain(&store, &cluster, &[], almost).returned.is_empty());
    a.release("again");
    let full = almost + 2 * EMPTY_BEFORE_RETURN;
    assert!(a.maintain(&store, &cluster, &[], full).returned.is_empty(), "the next pod would have to claim it again");
    a.release("p0");
    let long = full + EMPTY_BEFORE_RETURN;
    let returned = a.maintain(&store, &cluster, &[], long).returned;
    assert_eq!((returned.as_slice(), blocks()), (&[other][..], 1), "{again}");
    // What was observed still has it; it is not taken up again.
    a.maintain(&store, &cluster, &[], long + EMPTY_BEFORE_RETURN);
    assert_eq!(a.blocks().count(), 1);
}

#[test]
fn a_pod_gets_the_very_address_it_asks_for_or_a_reason() {
    let pools =
        pool_with("four", "10.1.0.0/24", "reserved: [\"10.1.0.3\", \"10.1.0.192/28\"]") + &pool("six", "fd00::/120");
    let (_directory, store) = directory(&pools);
    let (mut a, mut b) = (allocator("a"), allocator("b"));
    let both = [address("10.1.0.200"), address("fd00::77")];
    assert_eq!(a.allocate(&store, &observed(&store), &fixed("x", &both)).expect("in no block yet"), both);
    // One family fixed, the other as it comes.
    let given = a.allocate(&store, &observed(&store), &fixed("y", &both[1..])).map(|_| ());
    assert_eq!(given.expect_err("in use").to_string(), "fd00::77 is in use by x");
    let four = [address("10.1.0.201")];
    let given = b.allocate(&store, &observed(&store), &fixed("z", &four)).expect("out of the block of a");
    assert_eq!((given[0], given.len()), (four[0], 2));
    assert!(refused(a.allocate(&store, &observed(&store), &fixed("w", &four))).contains("10.1.0.201 is taken"));
    b.release("z");
    b.maintain(&store, &observed(&store), &[], Instant::now());
    assert_eq!(a.allocate(&store, &observed(&store), &fixed("w", &four)).expect("given back")[0], four[0]);

    let outside = refused(a.allocate(&store, &observed(&store), &fixed("v", &[address("10.9.0.1")])));
    assert!(outside.starts_with("10.9.0.1 is not an address that pods of this node can have"), "{outside}");
    let own = refused(b.allocate(&store, &observed(&store), &fixed("v", &[address("10.1.0.192")])));
    assert_eq!(own, "10.1.0.192 is the address of node a itself, the first of its block");
    // A reserved one may be had; one that a keeps for its own pods may not.
    b.allocate(&store, &observed(&store), &fixed("v", &[address("10.1.0.205")])).expect("reserved, so lent");
    let kept = refused(b.allocate(&store, &observed(&store), &fixed("t", &[address("fd00::42")])));
    assert!(kept.contains("kept by node a") && kept.contains("reserved"), "{kept}");
    // Nobody gets a reserved address by chance.
    for pod in 0..300 {
        match a.allocate(&store, &observed(&store), &AddressRequest::any(&format!("many-{pod}"))) {
            Ok(given) => assert!(
                given[0] != address("10.1.0.3") && !(address("10.1.0.192")..=address("10.1.0.207")).contains(&given[0])
            ),
            Err(error) => {
                assert!(matches!(error, IpamError::Exhausted { .. }), "{error}");
                break;
            }
        }
    }
}

#[test]
fn a_pod_of_a_stateful_set_finds_its_addresses_on_any_node_until_the_set_is_smaller() {
    let (directory, store) = directory(&(pool("four", "10.1.0.0/24") + &pool("six", "fd00::/120")));
    let set = |replicas: u32| {
        let text = format!(
            "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: shop}}\nspec: {{replicas: {replicas}}}\n"
        );
        directory.write("set.yaml", &text);
    };
    set(2);
    let pod = PodName::new("shop", "db-1").expect("name");
    let of_set = |holder| AddressRequest { pod: Some(&pod), stateful_set: Some("db"), ..AddressRequest::any(holder) };
    let (mut a, mut b) = (allocator("a"), allocator("b"));
    let first = a.allocate(&store, &observed(&store), &of_set("s1")).expect("addresses");
    let early = refused(a.allocate(&store, &observed(&store), &of_set("s2")));
    assert!(early.contains("in use by s1"), "{early}");
    a.release("s1");
    let now = Instant::now();
    a.maintain(&store, &observed(&store), &[], now);
    assert!(
        !a.allocate(&store, &observed(&store), &AddressRequest::any("other")).expect("addresses").contains(&first[0])
    );
    assert_eq!(b.allocate(&store, &observed(&store), &of_set("s3")).expect("moved"), first);
    b.release("s3");
    b.maintain(&store, &observed(&store), &[], now);
    assert_eq!(a.allocate(&store, &observed(&store), &of_set("s4")).expect("and back"), first);
    a.release("s4");
    set(1);
    assert_eq!(a.maintain(&store, &observed(&store), &[], now).given_back, first, "db-1 does not come again");
    assert!(observed(&store).blocks.values().all(|block| block.assigned.is_empty()));
}

#[test]
fn pools_are_those_that_are_named_or_those_of_everybody() {
    let pools = pool("everybody", "10.1.0.0/24")
        + &pool_with("vip", "10.2.0.0/24", "onlyOnRequest: true")
        + &pool_with("six", "fd00::/120", "onlyOnRequest: true");
    let (_directory, store) = directory(&pools);
    let mut a = allocator("a");
    let mut from = |holder: &str, pools: &[&str]| {
        let pools: Vec<PoolName> = pools.iter().map(|name| PoolName::new(name).expect("name")).collect();
        let request = AddressRequest { pools: &pools, ..AddressRequest::any(holder) };
        let given = a.allocate(&store, &observed(&store), &request);
        given.map(|given| given.iter().map(ToString::to_string).map(|text| text[..4].to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(from("x", &[]).expect("address"), ["10.1"]);
    assert_eq!(from("y", &["vip", "six"]).expect("addresses"), ["10.2", "fd00"]);
    assert_eq!(from("z", &["six"]).expect("address"), ["fd00"]);
    let unknown = from("w", &["none"]).expect_err("no such pool");
    assert!(unknown.is_of_the_request() && unknown.to_string().contains("IpPool none"), "{unknown}");
    let annotated = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {millrace.dev/ip-pools: \"vip, six\"}}\n\
                     ---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, annotations: {millrace.dev/ip: \"10.2.0.9,fd00::9\"}}\n";
    let read = cluster(annotated);
    let namespace = read.namespaces.values().next().expect("namespace");
    assert_eq!(namespace.pools.iter().map(PoolName::as_str).collect::<Vec<_>>(), ["vip", "six"]);
    let wishes = &read.pods.values().next().expect("pod").address_wishes;
    assert_eq!(wishes.fixed, [address("10.2.0.9"), address("fd00::9")]);
}

#[test]
fn prefixes_assigned_to_the_node_serve_instead_of_blocks() {
    let text =
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDRs: [\"10.5.1.0/24\", \"fd05:0:0:1::/64\"]}\n";
    let (_directory, store) = directory("");
    let cluster = cluster(text);
    let mut a = AddressAllocator::with_source(node_name("a"), AddressSource::PodCidr);
    let given = a.allocate(&store, &cluster, &AddressRequest::any("x")).expect("addresses");
    assert_eq!(given, [address("10.5.1.1"), address("fd05:0:0:1::1")]);
    let wanted = [address("10.5.1.77")];
    assert_eq!(a.allocate(&store, &cluster, &fixed("y", &wanted)).expect("addresses")[0], wanted[0]);
    assert!(
        refused(a.allocate(&store, &cluster, &fixed("z", &[address("10.5.2.1")]))).contains("no IpPool or podCIDR")
    );
    let more = (0..300).map_while(|pod| a.allocate(&store, &cluster, &AddressRequest::any(&format!("p{pod}"))).ok());
    assert_eq!(more.count(), 255 - 2);
    assert!(store.list(&IP_BLOCK).expect("list").is_empty());
    let planned = plan(&cluster, &local(&[], &["192.0.2.1"]));
    let segment = planned.plan.segments.values().next().expect("a segment");
    assert_eq!(segment.router_addresses, [address("10.5.1.0"), address("fd05:0:0:1::")]);
    let own = segment.routes.get(&"10.5.1.0/24".parse().expect("prefix")).expect("a route");
    assert_eq!(own.target, RouteTarget::Unreachable);
    let prefixes: Vec<_> = planned.plan.host.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.5.1.0/24", "fd05:0:0:1::/64"], "the host reaches its own pods");
}

/// As flannel leaves them: its pods have addresses of the same prefix, and so has its bridge.
#[test]
fn addresses_that_others_have_of_an_assigned_prefix_are_not_given() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDRs: [\"10.5.1.0/24\"]}\n";
    let (_directory, store) = directory("");
    let cluster = cluster(text);
    let mut a = AddressAllocator::with_source(node_name("a"), AddressSource::PodCidr);
    let taken = ["10.5.1.1", "10.5.1.2", "10.5.1.4"].map(address).into();
    let request = |holder, fixed| AddressRequest { fixed, taken: &taken, ..AddressRequest::any(holder) };
    assert_eq!(a.allocate(&store, &cluster, &request("x", &[])).expect("addresses"), [address("10.5.1.3")]);
    assert_eq!(a.allocate(&store, &cluster, &request("y", &[])).expect("addresses"), [address("10.5.1.5")]);
    let said = refused(a.allocate(&store, &cluster, &request("z", &[address("10.5.1.2")])));
    assert!(said.contains("10.5.1.2") && said.contains("whom the agent did not plug in"), "{said}");
}

#[test]
fn a_check_finds_each_sort_of_leak_and_nothing_else() {
    let text = node("a", &["192.0.2.1"])
        + &pool("four", "10.1.0.0/24")
        + "---\napiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {name: 10-1-0-0-26}\n\
           spec: {cidr: \"10.1.0.0/26\", pool: four, node: a, assigned: [{address: 10.1.0.40, node: gone}]}\n"
        + "---\napiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {name: 10-1-0-64-26}\n\
           spec: {cidr: \"10.1.0.64/26\", pool: four, node: gone}\n"
        + "---\napiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {name: 10-7-0-0-26}\n\
           spec: {cidr: \"10.7.0.0/26\", pool: former, node: a}\n"
        + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {nodeName: a}\nstatus: {podIP: 10.1.0.1}\n"
        + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {nodeName: a}\nstatus: {podIP: 10.1.0.2}\n"
        + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: host}\nspec: {nodeName: a, hostNetwork: true}\nstatus: {podIP: 192.0.2.1}\n";
    let cluster = cluster(&text);
    let attached = |holder: &str, pod: &str, own: &str, there| Attached {
        holder: holder.to_owned(),
        pod: Some(PodName::new("default", pod).expect("name")),
        addresses: vec![address(own)],
        namespace_is_there: there,
    };
    let attachments = [
        attached("c1/eth0", "web", "10.1.0.1", true),
        attached("c2/eth0", "web", "10.1.0.3", false),
        attached("c3/eth0", "deleted", "10.1.0.4", true),
        attached("c5/eth0", "web", "10.1.0.70", true),
    ];
    let mut held: BTreeMap<IpAddr, String> =
        attachments.iter().map(|entry| (entry.addresses[0], entry.holder.clone())).collect();
    held.insert(address("10.1.0.5"), "c4/eth0".to_owned());
    let found = check(&cluster, (&node_name("a"), None), &held, &attachments, true);
    let found: Vec<(FindingKind, &str)> =
        found.iter().map(|finding| (finding.kind, finding.subject.as_str())).collect();
    let expected = [
        (FindingKind::HeldWithoutAttachment, "10.1.0.5"),
        (FindingKind::NamespaceGone, "10.1.0.3"),
        (FindingKind::AddressWithoutPod, "10.1.0.4"),
        (FindingKind::PodWithoutAddress, "10.1.0.2"),
        (FindingKind::OutsideOfBlocks, "10.1.0.70"),
        (FindingKind::BlockOfVanishedNode, "10-1-0-64-26"),
        (FindingKind::AssignedToVanishedNode, "10.1.0.40"),
        (FindingKind::BlockWithoutPool, "10-7-0-0-26"),
    ];
    assert_eq!(found, expected);
}
