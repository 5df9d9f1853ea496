//! Every kind of fault, with the words a person gets: file, line, object, field, what is wrong.

use millrace_control::observe::{KINDS, Observed};
use millrace_control::store::{ObjectKey, ObjectStore, Watch};
use proptest::prelude::*;

use crate::support::{TestDirectory, follow, node, observe};

/// Objects and the one problem that must come of them.
const FAULTS: &[(&str, &str)] = &[
    ("kind: Node\nmetadata: {name: a}\n", "objects.yaml:1: apiVersion: is missing"),
    ("apiVersion: v1\nmetadata: {name: a}\n", "objects.yaml:1: kind: is missing"),
    ("apiVersion: v1\nkind: Node\nmetadata: {}\n", "objects.yaml:3: metadata.name: is missing"),
    (
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: Not_A_Name\n",
        "objects.yaml:4: metadata.name: \"Not_A_Name\" is not a DNS subdomain (labels of a-z, 0-9 and '-', separated by dots)",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: 5\n",
        "objects.yaml:4: metadata.name: must be a text that is not empty",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  namespace: b\n",
        "objects.yaml:5: metadata.namespace: kind Node has no namespace",
    ),
    (
        "\n\n# a comment\napiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus:\n  addresses:\n  - type: InternalIP\n    address: [1]\n",
        "objects.yaml:10: Node a: status.addresses[0].address: invalid type: sequence, expected a string",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus:\n  addresses: [{type: InternalIP, address: 192.0.2.300}]\n",
        "objects.yaml:5: Node a: status.addresses: \"192.0.2.300\" is not an IP address",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus:\n  addresses: [{type: InternalIP, address: 127.0.0.1}]\n",
        "objects.yaml:5: Node a: status.addresses: \"127.0.0.1\" cannot be the address of a node",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec:\n  podCIDRs: [10.1.2.3/24]\n",
        "objects.yaml:5: Node a: spec.podCIDRs: 10.1.2.3/24 has bits set beyond its length; the prefix is 10.1.2.0/24",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  annotations:\n    millrace.dev/vtep-mac: 01:00:5e:00:00:01\n",
        "objects.yaml:6: Node a: metadata.annotations.millrace.dev/vtep-mac: 01:00:5e:00:00:01 does not name one station",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  annotations:\n    flannel.alpha.coreos.com/backend-data: '{\"VNI\":7,\"VtepMAC\":\"02:00:00:00:00:01\"}'\n",
        "objects.yaml:6: Node a: metadata.annotations.flannel.alpha.coreos.com/backend-data: VNI 7 is not the pods' VNI 1",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n}\nspec:\n  containers: []\n  nodeName: Node A\n",
        "objects.yaml:6: Pod n/p: spec.nodeName: \"Node A\" is not a DNS subdomain (labels of a-z, 0-9 and '-', separated by dots)",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    ports:\n    - containerPort: many\n",
        "objects.yaml:8: Pod default/p: spec.containers[0].ports[0].containerPort: invalid type: string \"many\", expected i32",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus:\n  podIPs: [{ip: ten}]\n",
        "objects.yaml:5: Pod default/p: status.podIPs: \"ten\" is not an IP address",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: p}\nspec:\n  cidr: 10.0.0.0/8\n  blocksize: 26\n",
        "objects.yaml:6: IpPool p: spec.blocksize: unknown field `blocksize`, expected one of `cidr`, `blockSize`, `tunnel`, `network`, `onlyOnRequest`, `reserved`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: p}\nspec:\n  blockSize: 26\n",
        "objects.yaml:5: IpPool p: spec: missing field `cidr`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: p}\nspec:\n  cidr: 10.0.0.0/28\n  blockSize: 26\n",
        "objects.yaml:6: IpPool p: spec.blockSize: blocks of /26 do not fit a pool of /28",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: p}\nspec:\n  cidr: all\n",
        "objects.yaml:5: IpPool p: spec.cidr: \"all\" is not a prefix such as 10.1.0.0/16 or fd00:10:1::/48",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: p}\nspce: {}\n",
        "objects.yaml:4: IpPool p: spce: unknown field `spce`, expected one of `apiVersion`, `kind`, `metadata`, `spec`, `status`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {name: u}\nspec:\n  interface: a\n  port: udp\n  busyPollBudget: 8\n",
        "objects.yaml:7: Uplink u: spec.busyPollBudget: only AF_XDP sockets poll the card's driver: it needs `port: af_xdp`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {name: u}\nspec: {interface: a, port: af_xdp, busyPollBudget: 0}\n",
        "objects.yaml:4: Uplink u: spec.busyPollBudget: a call must take one packet at least",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {name: u}\nspec:\n  interface: a/b\n",
        "objects.yaml:5: Uplink u: spec.interface: \"a/b\" is not an interface name (1 to 15 bytes without '/', ':' and blanks)",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {name: b}\nspec: {cidr: 224.0.0.0/26, pool: p, node: a}\n",
        "objects.yaml:4: IpBlock b: spec.cidr: 224.0.0.0/26 is not made of unicast addresses that may be routed",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Uplnk\nmetadata: {name: u}\n",
        "objects.yaml:2: Uplnk u: kind: millrace.dev/v1alpha1 Uplnk is not known here; known are millrace.dev/v1alpha1 Uplink, millrace.dev/v1alpha1 IpPool, millrace.dev/v1alpha1 IpBlock, millrace.dev/v1alpha1 Bridge, millrace.dev/v1alpha1 Port, millrace.dev/v1alpha1 Network",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Bridge\nmetadata: {name: b}\nspec:\n  vnis:\n  - {vlan: 4095, vni: 7}\n",
        "objects.yaml:6: Bridge b: spec.vnis: 4095 is no VLAN: 1 to 4094",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Bridge\nmetadata: {name: b}\nspec:\n  vnis:\n  - {vni: 16777216}\n",
        "objects.yaml:6: Bridge b: spec.vnis: 16777216 is no VNI: it has 24 bits",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Port\nmetadata: {name: p}\nspec:\n  tap: {interface: eth0}\n  trunk: [5]\n",
        "objects.yaml:6: Port p: spec.trunk: needs a `bridge`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Port\nmetadata: {name: p}\nspec:\n  bridge: b\n  tap: {interface: eth0}\n  vlan: 5\n  trunk: [5]\n",
        "objects.yaml:5: Port p: spec: a port has one of `vlan`, `trunk` and `serviceVlan`",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Port\nmetadata: {name: p}\nspec:\n  bridge: b\n  afXdp: {interface: eth1, namespace: guest}\n",
        "objects.yaml:6: Port p: spec.afXdp.namespace: the namespace is given as a path such as /run/netns/guest",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Network\nmetadata: {name: n}\nspec:\n  interface: eth0\n  subnets:\n  - {cidr: 10.0.0.0/24, gateway: 10.0.1.1}\n",
        "objects.yaml:7: Network n: spec.subnets: the gateway \"10.0.1.1\" is no address of 10.0.0.0/24",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Network\nmetadata: {name: n}\nspec:\n  interface: eth0\n  subnets:\n  - {cidr: 10.0.0.0/24}\n  - {cidr: 10.0.0.0/25}\n",
        "objects.yaml:7: Network n: spec.subnets: 10.0.0.0/25 overlaps 10.0.0.0/24",
    ),
    (
        "apiVersion: millrace.dev/v1alpha1\nkind: Network\nmetadata: {name: n}\nspec: {interface: eth0, vlan: 0}\n",
        "objects.yaml:4: Network n: spec.vlan: 0 is no VLAN: 1 to 4094",
    ),
    ("- a list\n", "objects.yaml:1: apiVersion: is missing"),
];

#[test]
fn each_fault_is_told_with_its_place() {
    for (text, expected) in FAULTS {
        let observed = observe(text);
        let problems: Vec<String> = observed.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems, [*expected], "{text}");
    }
}

#[test]
fn text_that_is_no_yaml_is_told_with_its_line() {
    for (text, line) in [
        ("a: b\nc: [1, 2\nd: e\n", 3),
        ("apiVersion: v1\n---\n\n\tkey: value\n", 4),
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a: &x 1\nb: *y\n", 2),
    ] {
        let problems = observe(text).problems();
        let [.., last] = problems.as_slice() else { panic!("no problem in {text}") };
        let distance = last.line.map(|found| found.abs_diff(line));
        assert!(distance.is_some_and(|distance| distance <= 1), "{text}: {last}");
    }
}

#[test]
fn an_alias_bomb_is_refused_quickly() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let before = format!("*a{}", level - 1);
        text += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", "));
    }
    let start = std::time::Instant::now();
    let problems = observe(&text).problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(start.elapsed() < std::time::Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn many_comments_are_no_fault() {
    let text =
        "# words\n".repeat(500) + "apiVersion: v1\nkind: Node\n" + &"# words\n".repeat(500) + "metadata: {name: a}\n";
    assert_eq!(observe(&text).problems(), []);
}

#[test]
fn objects_of_other_kinds_are_passed_over() {
    let observed = observe("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n");
    assert_eq!(observed.problems(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever a file holds, each object in it is read or is a problem, and nothing panics.
    #[test]
    fn damaged_files_do_no_harm(
        which in 0..FAULTS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = format!("{}---\n{}", FAULTS[which].0, node("good", &["192.0.2.1"])).into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let directory = TestDirectory::new();
        std::fs::write(directory.path().join("damaged.yaml"), &bytes).expect("write");
        directory.write("whole.yaml", &node("whole", &["192.0.2.2"]));
        let store = directory.store();
        for object in KINDS.iter().flat_map(|kind| store.list(kind).expect("list")) {
            prop_assert_eq!(millrace_control::observe::read(&object).is_ok_and(|record| record.is_none()), false);
        }
        let whole = ObjectKey::cluster_scoped(KINDS[0].clone(), "whole");
        prop_assert!(store.get(&whole).expect("get").is_some());
    }
}

fn watched(directory: &TestDirectory) -> (Watch, Observed) {
    let watch = directory.store().watch(&KINDS).expect("watch");
    let mut observed = Observed::default();
    follow(&watch, &mut observed);
    (watch, observed)
}

#[test]
fn the_last_valid_version_stays_until_the_object_is_valid_again_or_gone() {
    let pool = |cidr: &str| {
        format!("apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {{name: p}}\nspec: {{cidr: {cidr}}}\n")
    };
    let directory = TestDirectory::new();
    directory.write("pool.yaml", &pool("10.0.0.0/16"));
    let (watch, mut observed) = watched(&directory);
    let cidrs =
        |observed: &Observed| observed.cluster().pools.values().map(|pool| pool.cidr().to_string()).collect::<Vec<_>>();
    directory.write("pool.yaml", &pool("10.0.0.1/16"));
    follow(&watch, &mut observed);
    assert_eq!((cidrs(&observed), observed.problems().len()), (vec!["10.0.0.0/16".to_owned()], 1));
    directory.write("pool.yaml", &pool("10.1.0.0/16"));
    follow(&watch, &mut observed);
    assert_eq!((cidrs(&observed), observed.problems().len()), (vec!["10.1.0.0/16".to_owned()], 0));
    directory.write("pool.yaml", &pool("10.0.0.1/16"));
    follow(&watch, &mut observed);
    directory.remove("pool.yaml");
    follow(&watch, &mut observed);
    assert_eq!((cidrs(&observed), observed.problems().len()), (vec![], 0));
}

#[test]
fn words_for_true_are_taken_where_a_boolean_is_asked_for_and_are_names_elsewhere() {
    let observed = observe(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: on, namespace: n, labels: {a: yes}}\nspec: {containers: [], hostNetwork: yes}\n",
    );
    assert_eq!(observed.problems(), []);
    let pod = observed.cluster().pods.values().next().expect("pod");
    assert_eq!((pod.name.to_string().as_str(), pod.host_network), ("n/on", true));
    assert_eq!(pod.labels["a"], "yes");
}
