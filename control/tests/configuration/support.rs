//! A directory of one test, and short ways to make objects, clusters and pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_control::cluster::{Cluster, InterfaceName, NodeName, PodName};
use millrace_control::observe::{KINDS, Observed};
use millrace_control::plan::{AttachedPod, LocalUplink, LocalView, UnderlayPath};
use millrace_control::store::directory::DirectoryOptions;
use millrace_control::store::{DirectoryStore, Event, ObjectStore, Watch};
use millrace_engine::packet::{Mac, PortIndex};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A directory that goes with its test.
pub(crate) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-configuration-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("write");
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).expect("remove");
    }

    pub(crate) fn store(&self) -> DirectoryStore {
        self.store_with(Duration::from_millis(50))
    }

    /// A store that waits so long for files to be quiet.
    pub(crate) fn store_with(&self, quiet: Duration) -> DirectoryStore {
        let options = DirectoryOptions { quiet, rescan: Duration::from_secs(20) };
        DirectoryStore::with_options(&self.0, options).expect("open")
    }

    pub(crate) fn watch(&self) -> Watch {
        self.store().watch(&KINDS).expect("watch")
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Takes events in until the watch says nothing for a while.
pub(crate) fn follow(watch: &Watch, observed: &mut Observed) {
    let mut wait = Duration::from_secs(5);
    while let Ok(event) = watch.events.recv_timeout(wait) {
        observed.take(event);
        wait = Duration::from_millis(300);
    }
}

/// Events until the watch says nothing for a while, one line each.
pub(crate) fn lines(watch: &Watch) -> Vec<String> {
    let mut lines = Vec::new();
    let mut wait = Duration::from_secs(5);
    while let Ok(event) = watch.events.recv_timeout(wait) {
        lines.push(match event {
            Event::Applied(object) => format!("applied {}", object.key),
            Event::Deleted(key) => format!("deleted {key}"),
            Event::Synced => "synced".to_owned(),
            Event::Problems(problems) if problems.is_empty() => "no problems".to_owned(),
            Event::Problems(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        });
        wait = Duration::from_millis(300);
    }
    lines
}

/// What the objects in `text` make.
pub(crate) fn observe(text: &str) -> Observed {
    let directory = TestDirectory::new();
    directory.write("objects.yaml", text);
    let watch = directory.watch();
    let mut observed = Observed::default();
    while !observed.is_synced() {
        observed.take(watch.events.recv_timeout(Duration::from_secs(5)).expect("event"));
    }
    while let Ok(event) = watch.events.recv_timeout(Duration::from_millis(20)) {
        observed.take(event);
    }
    observed
}

pub(crate) fn cluster(text: &str) -> Cluster {
    let observed = observe(text);
    assert_eq!(observed.problems(), [], "objects of a test must be valid");
    observed.cluster().clone()
}

pub(crate) fn node(name: &str, addresses: &[&str]) -> String {
    let listed: String = addresses.iter().map(|ip| format!("  - {{type: InternalIP, address: \"{ip}\"}}\n")).collect();
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n{listed}")
}

pub(crate) fn pool(name: &str, cidr: &str) -> String {
    format!(
        "---\napiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \"{cidr}\"}}\n"
    )
}

pub(crate) fn block(name: &str, cidr: &str, pool: &str, node: &str) -> String {
    format!(
        "---\napiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {{name: {name}}}\nspec: {{cidr: \"{cidr}\", pool: {pool}, node: {node}}}\n"
    )
}

pub(crate) fn node_name(name: &str) -> NodeName {
    NodeName::new(name).expect("node name")
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A pod whose MAC address ends in the number of its port.
pub(crate) fn attached(port: u16, name: &str, addresses: &[&str]) -> (PortIndex, AttachedPod) {
    let pod = AttachedPod {
        host_ports: Vec::new(),
        bandwidth: Default::default(),
        uid: None,
        network: None,
        further: false,
        pod: PodName::new("default", name).expect("pod name"),
        container_id: format!("container-{name}"),
        interface: InterfaceName::new("eth0").expect("interface"),
        mac: Mac([2, 0, 0, 0, 1, port as u8]),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        mtu: 1450,
    };
    (PortIndex(port), pod)
}

pub(crate) fn uplink(port: u16, addresses: &[&str]) -> (PortIndex, LocalUplink) {
    let uplink = LocalUplink {
        interface: InterfaceName::new("eth1").expect("interface"),
        mac: Mac([2, 0, 0, 0, 0, port as u8]),
        mtu: 1500,
        addresses: addresses.iter().map(|text| address(text)).collect(),
        link_up: true,
    };
    (PortIndex(port), uplink)
}

pub(crate) fn path(port: u16, source: &str) -> UnderlayPath {
    UnderlayPath {
        on_link: false,
        port: PortIndex(port),
        source: address(source),
        source_mac: Mac([2, 0, 0, 0, 0, port as u8]),
        next_hop: Some(Mac([2, 0, 0, 0, 0, 0xfe])),
        mtu: 1500,
    }
}

/// Node `a` with the uplink at port 0.
pub(crate) fn local(pods: &[(PortIndex, AttachedPod)], uplink_addresses: &[&str]) -> LocalView {
    let mut local = LocalView::new(node_name("a"));
    local.pods = pods.iter().cloned().collect();
    local.uplinks = BTreeMap::from([uplink(0, uplink_addresses)]);
    local
}
