//! Stores to ask, and short ways to ask them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use millrace_control::observe::{IP_BLOCK, NETWORK_POLICY, custom_resource_definitions};
use millrace_control::store::api_server::Connection;
use millrace_control::store::directory::DirectoryOptions;
use millrace_control::store::{ApiServerStore, DirectoryStore, Event, Kind, ObjectKey, ObjectStore, Watch};
use millrace_emulator::{Emulator, Options};
use serde_json::{Value, json};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a test's stores look.
enum Place {
    Directory(PathBuf),
    Emulator(Box<Emulator>),
    Server(PathBuf),
}

/// A place for objects and a prefix for the names of one test's.
pub(crate) struct World {
    place: Place,
    prefix: String,
}

/// A name that no other test and no other process uses.
fn unique() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl World {
    fn at(place: Place) -> World {
        World { place, prefix: unique() }
    }

    pub(crate) fn directory() -> World {
        let path = std::env::temp_dir().join(format!("millrace-store-{}", unique()));
        std::fs::create_dir_all(&path).expect("directory");
        World::at(Place::Directory(path))
    }

    pub(crate) fn streaming() -> World {
        World::emulator(Options::default())
    }

    pub(crate) fn paging() -> World {
        World::emulator(Options { streaming_lists: false, ..Options::default() })
    }

    /// An emulator with our definitions.
    pub(crate) fn emulator(options: Options) -> World {
        let options = Options { definitions: custom_resource_definitions(), ..options };
        World::at(Place::Emulator(Box::new(Emulator::start(options).expect("emulator"))))
    }

    pub(crate) fn real_server() -> World {
        static PREPARED: std::sync::Once = std::sync::Once::new();
        let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").expect("KUBECONFIG"));
        PREPARED.call_once(|| {
            let definitions = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds.yaml");
            let kubectl = |words: &[&str]| {
                let status = std::process::Command::new("kubectl").args(words).status().expect("kubectl");
                assert!(status.success(), "kubectl {words:?}");
            };
            kubectl(&["apply", "-f", definitions]);
            kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", definitions]);
        });
        World::at(Place::Server(kubeconfig))
    }

    /// The emulator of a test that is about one.
    pub(crate) fn server(&self) -> &Emulator {
        match &self.place {
            Place::Emulator(emulator) => emulator,
            _ => panic!("this test is about the emulator"),
        }
    }

    /// A store that shares nothing with another one but the place.
    pub(crate) fn store(&self) -> Box<dyn ObjectStore> {
        if let Place::Directory(path) = &self.place {
            let options = DirectoryOptions { quiet: Duration::from_millis(20), rescan: Duration::from_millis(500) };
            return Box::new(DirectoryStore::with_options(path, options).expect("open"));
        }
        Box::new(self.store_on_server())
    }

    /// A store on the server of this world, which is no directory.
    pub(crate) fn store_on_server(&self) -> ApiServerStore {
        let connection = match &self.place {
            Place::Directory(path) => panic!("{} is no server", path.display()),
            Place::Emulator(emulator) => {
                let file = std::env::temp_dir().join(format!("millrace-kubeconfig-{}", unique()));
                std::fs::write(&file, emulator.kubeconfig()).expect("written");
                let connection = Connection::from_kubeconfig(&file).expect("kubeconfig");
                std::fs::remove_file(&file).expect("removed");
                connection
            }
            Place::Server(kubeconfig) => Connection::from_kubeconfig(kubeconfig).expect("kubeconfig"),
        };
        ApiServerStore::open(connection).expect("open")
    }

    /// A name of this test.
    pub(crate) fn name(&self, word: &str) -> String {
        format!("{}-{word}", self.prefix)
    }

    /// A block whose content is told by its node.
    pub(crate) fn block(&self, word: &str, node: &str) -> Value {
        json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": {"name": self.name(word)},
            "spec": {"cidr": "10.1.0.0/26", "pool": "p", "node": node},
        })
    }

    pub(crate) fn block_key(&self, word: &str) -> ObjectKey {
        ObjectKey::cluster_scoped(IP_BLOCK, self.name(word))
    }

    /// A policy in the namespace `default` whose content is told by a label.
    pub(crate) fn policy(&self, word: &str, label: &str) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": self.name(word), "namespace": "default", "labels": {"is": label}},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        })
    }

    /// The rest of what the watch reports of this test's objects until nothing is to come: `applied IpBlock a = n1`.
    pub(crate) fn lines(&self, watch: &Watch, expected: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let end = Instant::now() + PATIENCE;
        // What comes too much comes soon behind.
        let mut quiet = None;
        loop {
            let wait = quiet.unwrap_or(end).saturating_duration_since(Instant::now());
            match watch.events.recv_timeout(wait) {
                Ok(event) => lines.extend(self.line(&event)),
                Err(_) => return lines,
            }
            if lines.len() >= expected && quiet.is_none() {
                quiet = Some(Instant::now() + Duration::from_millis(300));
            }
        }
    }

    fn line(&self, event: &Event) -> Option<String> {
        let own = |key: &ObjectKey| {
            let name = key.name.strip_prefix(&self.prefix)?.strip_prefix('-')?;
            Some(format!("{} {name}", key.kind.kind))
        };
        match event {
            Event::Applied(object) => {
                let json = object.to_json();
                let content = [&json["spec"]["node"], &json["metadata"]["labels"]["is"]];
                let content = content.into_iter().find_map(Value::as_str).unwrap_or_default();
                Some(format!("applied {} = {content}", own(&object.key)?))
            }
            Event::Deleted(key) => Some(format!("deleted {}", own(key)?)),
            Event::Synced => Some("synced".to_owned()),
            Event::Problems(problems) if problems.is_empty() => Some("no problems".to_owned()),
            Event::Problems(problems) => {
                Some(problems.iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// Kinds of this suite: one of ours, cluster-wide; one of Kubernetes, in namespaces.
    pub(crate) fn kinds() -> [Kind; 2] {
        [IP_BLOCK, NETWORK_POLICY]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        match &self.place {
            Place::Directory(path) => drop(std::fs::remove_dir_all(path)),
            Place::Emulator(_) => {}
            Place::Server(_) => {
                let store = self.store();
                for object in Self::kinds().iter().flat_map(|kind| store.list(kind).unwrap_or_default()) {
                    if object.key.name.starts_with(&self.prefix) {
                        let _ = store.delete(&object.key, &object.resource_version);
                    }
                }
            }
        }
    }
}
