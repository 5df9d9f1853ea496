//! Onto a node and off it again: when the container runtime is told, and that nothing is left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_control::agent::HOST_INTERFACE;
use millrace_control::kernel::NamespaceHandle;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use crate::agent_process::AgentOptions;
use crate::cluster::{AF_XDP, NODES, POOLS, Underlay, node_object, uplink_object_of};
use crate::directory::{Directory, unique};
use crate::host::pings;
use crate::node_state;
use crate::pod::Pod;
use crate::root_tests::needs_program;
use crate::traffic;

const PATIENCE: Duration = Duration::from_secs(20);
const CONFLIST: &str = "10-millrace.conflist";

/// Places of one node's container runtime in the test's directory.
struct Places<'a> {
    node: &'static str,
    directory: &'a Directory,
}

impl Places<'_> {
    fn of(number: usize, directory: &Directory) -> Places<'_> {
        let places = Places { node: NODES[number].0, directory };
        [places.plugins(), places.configurations()]
            .iter()
            .for_each(|path| fs::create_dir_all(path).expect("directory"));
        places
    }

    fn plugins(&self) -> PathBuf {
        self.directory.file(&format!("{}.bin", self.node))
    }

    fn configurations(&self) -> PathBuf {
        self.directory.file(&format!("{}.net.d", self.node))
    }

    /// Where its agent keeps connections: not by the socket.
    fn kept(&self) -> PathBuf {
        self.directory.file(&format!("{}.elsewhere", self.node))
    }

    fn conflist(&self) -> PathBuf {
        self.configurations().join(CONFLIST)
    }

    /// The configuration by which its agent tells the runtime.
    fn telling(&self) -> &'static str {
        format!(
            "kept_directory = \"{}\"\n[cni]\nconfiguration_directory = \"{}\"\n",
            self.kept().display(),
            self.configurations().display()
        )
        .leak()
    }

    /// Runs `millrace install` or `uninstall` on the node.
    fn run(&self, namespace: &NamespaceHandle, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(words).args(["-o", "json", "--plugin-directory"]).arg(self.plugins());
        command.arg("--configuration-directory").arg(self.configurations());
        command.arg("--state-directory").arg(self.directory.file(&format!("{}.state", self.node)));
        command.arg("--socket").arg(self.directory.file(&format!("{}.sock", self.node)));
        namespace.enter(|| command.output()).expect("entered").expect("program")
    }
}

/// What a run said of each thing.
fn outcomes(output: &Output) -> BTreeMap<String, String> {
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |line: &Value, key: &str| line[key].as_str().expect("text").to_owned();
    lines.iter().map(|line| (text(line, "what"), text(line, "outcome"))).collect()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_configuration(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    let document: Value = serde_json::from_str(&text).expect("whole at any moment");
    document["plugins"][0]["type"] == "millrace-cni"
}

pub(crate) fn the_runtime_is_told_when_pods_can_be_plugged_in() {
    let underlay = Underlay::create(1);
    let (directory, namespace) = (&underlay.directory, underlay.nodes[0].handle());
    let places = Places::of(0, directory);
    // Without a pool no pod gets an address.
    let objects = [node_object(0), node_object(1), uplink_object_of(0, "up0", AF_XDP)].concat();
    directory.write_objects("cluster.yaml", &objects);
    // Without an agent the plugin is installed, and the runtime told nothing.
    let refused = places.run(namespace, &["install", "--wait", "0"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(places.plugins().join("millrace-cni").is_file() && !places.conflist().exists());

    fs::remove_dir(places.configurations()).expect("removed");
    let options = AgentOptions { more: places.telling(), ..AgentOptions::default() };
    let agent = underlay.start(0, options);
    let refused = places.run(namespace, &["install", "--wait", "1"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no IpPool exists"), "{refused:?}");
    assert!(agent.status().problems.is_empty(), "nothing was tried yet: {:?}", agent.status().problems);
    directory.write_objects("pools.yaml", POOLS);
    // The directory is not there: that is said, until it is.
    let problems = |words: &str| {
        let status = agent.status();
        status.problems.iter().any(|problem| problem.message.contains(words))
    };
    wait_until("the directory that is not there is a problem", || problems("is no directory"));
    fs::create_dir(places.configurations()).expect("made");
    fs::write(places.configurations().join("05-other.conflist"), "{}").expect("written");
    wait_until("the runtime is told", || is_configuration(&places.conflist()));
    wait_until("the problem is gone", || !problems("is no directory"));
    wait_until("another configuration is a problem", || problems("holds 05-other.conflist"));
    fs::remove_file(places.configurations().join("05-other.conflist")).expect("removed");
    // By hand it is the same file.
    let again = outcomes(&places.run(namespace, &["install"]));
    assert_eq!(again.into_values().collect::<Vec<_>>(), ["unchanged", "unchanged"]);

    // What somebody takes away to drain the node stays away; a restart takes nothing away, and puts it back.
    fs::remove_file(places.conflist()).expect("removed");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!places.conflist().exists());
    drop(agent);
    let agent = underlay.start(0, options);
    wait_until("the runtime is told again", || is_configuration(&places.conflist()));
    drop(agent);
    assert!(is_configuration(&places.conflist()), "an agent that ends takes nothing away");
    let agent = underlay.start(0, options);
    agent.assert_sound();
}

/// A directory with room for a few pages.
struct FullDirectory(PathBuf);

impl FullDirectory {
    fn mount(path: PathBuf) -> FullDirectory {
        fs::create_dir(&path).expect("directory");
        let size = c"size=32k";
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), size).expect("mounted");
        FullDirectory(path)
    }
}

impl Drop for FullDirectory {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

pub(crate) fn a_full_or_read_only_directory_keeps_what_it_has() {
    let directory = Directory::create();
    let full = FullDirectory::mount(directory.file("full"));
    let (small, large) = (directory.file("small"), directory.file("large"));
    fs::write(&small, "first").expect("written");
    fs::write(&large, vec![b'x'; 100_000]).expect("written");
    let install = |source: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(["install", "--plugin-only", "--plugin"]).arg(source).arg("--plugin-directory").arg(&full.0);
        command.output().expect("program")
    };
    assert!(install(&small).status.success());
    let names = || fs::read_dir(&full.0).expect("directory").map(|entry| entry.expect("entry").file_name());
    let refused = |source: &Path, words: &str| {
        let output = install(source);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{output:?}");
        assert_eq!(fs::read_to_string(full.0.join("millrace-cni")).expect("read"), "first");
        assert_eq!(names().collect::<Vec<_>>(), ["millrace-cni"], "nothing is left beside it");
    };
    refused(&large, "No space left on device");
    rustix::mount::mount_remount(&full.0, MountFlags::RDONLY, "").expect("remounted");
    refused(&large, "Read-only file system");
    // What is there already needs no writing.
    assert!(install(&small).status.success());
}

pub(crate) fn an_uninstalled_node_is_as_before() {
    needs_program("ip", "iproute2");
    let underlay = Underlay::create(1);
    let (directory, nodes) = (&underlay.directory, [0, 1].map(|number: usize| underlay.nodes[number].handle().clone()));
    let before = [0, 1].map(|number: usize| node_state::settled(&nodes[number]));
    let uplinks = [0, 1].map(|number| uplink_object_of(number, "up0", AF_XDP)).concat();
    directory.write_objects("cluster.yaml", &[POOLS.to_owned(), node_object(0), node_object(1), uplinks].concat());
    directory.write_objects(
        "pods.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a2, namespace: default, annotations: {millrace.dev/interface: veth}}\n\
         spec: {nodeName: a, containers: []}\n",
    );
    let places = [0, 1].map(|number| Places::of(number, directory));
    let start = |number: usize| {
        underlay.start(number, AgentOptions { more: places[number].telling(), ..AgentOptions::default() })
    };
    let [first, second] = [start(0), start(1)];
    for (place, node) in places.iter().zip(&nodes) {
        outcomes(&place.run(node, &["install"]));
    }
    let [a1, a2, b1] = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ports = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "127.0.0.1"},
    ]}});
    assert!(a1.call_with("ADD", directory, &ports).success);
    let ends = [a2.add(directory), b1.add(directory)];
    traffic::check(&ends[0], &ends[1]);
    pings(&ends[0], &ends[1]);
    let rules = |node: &NamespaceHandle| node_state::run(node, "ip", &["rule"]);
    wait_until("rules lead to ports of pods", || rules(&nodes[0]).contains("lookup 77"));
    for (before, node) in before.iter().zip(&nodes) {
        let changes = node_state::differences(before, &node_state::settled(node));
        for expected in [HOST_INTERFACE, "managed", "ip_local_reserved_ports"] {
            assert!(changes.iter().any(|change| change.contains(expected)), "{expected} in {changes:#?}");
        }
    }

    // While an agent runs nothing is touched.
    let refused = places[0].run(&nodes[0], &["uninstall"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("an agent is running"), "{refused:?}");
    assert!(is_configuration(&places[0].conflist()));

    // One agent dies, the other ends in order.
    first.kill();
    drop(second);
    for ((place, node), before) in places.iter().zip(&nodes).zip(&before) {
        let said = outcomes(&place.run(node, &["uninstall"]));
        let removed: Vec<&str> =
            said.iter().filter(|(_, outcome)| *outcome == "removed").map(|(what, _)| what.as_str()).collect();
        for expected in [CONFLIST, "millrace-cni", HOST_INTERFACE, "neighbours kept fresh", "state in"] {
            assert!(removed.iter().any(|what| what.contains(expected)), "{expected} in {said:#?}");
        }
        let changes = node_state::differences(before, &node_state::settled(node));
        assert_eq!(changes, Vec::<String>::new());
        for path in [place.plugins(), place.configurations()] {
            assert_eq!(fs::read_dir(path).expect("directory").count(), 0);
        }
        assert!(!directory.file(&format!("{}.state", place.node)).exists());
        assert!(!directory.file(&format!("{}.sock", place.node)).exists());
        assert!(!place.kept().exists(), "connections of an agent that is gone");
        // May be repeated.
        let again = outcomes(&place.run(node, &["uninstall"]));
        assert!(again.values().all(|outcome| outcome == "absent"), "{again:#?}");
    }
    assert!([&a1, &a2, &b1].iter().all(|pod| pod.interface().is_none()), "pods lost their interfaces");
}

/// With pods there the plugin may stay: it answers the DELs of their end without agent and record.
pub(crate) fn pods_end_after_an_uninstall_that_kept_the_plugin() {
    let underlay = Underlay::create(1);
    let (directory, node) = (&underlay.directory, underlay.nodes[0].handle());
    let uplink = uplink_object_of(0, "up0", AF_XDP);
    directory.write_objects("cluster.yaml", &[POOLS.to_owned(), node_object(0), uplink].concat());
    let place = Places::of(0, directory);
    let agent = underlay.start(0, AgentOptions { more: place.telling(), ..AgentOptions::default() });
    outcomes(&place.run(node, &["install"]));
    let pod = Pod::create(&unique("kept"), "a");
    pod.add(directory);
    agent.kill();
    outcomes(&place.run(node, &["uninstall", "--keep-plugin"]));
    assert!(place.plugins().join("millrace-cni").is_file() && !place.conflist().exists());
    for _ in 0..2 {
        pod.delete(directory);
    }
    assert!(pod.interface().is_none());
    outcomes(&place.run(node, &["uninstall"]));
    assert!(!place.plugins().join("millrace-cni").exists());
    assert!(!directory.file("a.state").exists(), "what the DELs left is gone too");
}
