//! containerd, everything of it in the directory of the test, driven by its CRI as a kubelet drives it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_control::api::model::PortReport;
use millrace_control::kernel::NamespaceHandle;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::cri::{Client, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping};
use super::world::{Container, Runtime, World, networks, plugins};
use super::{image, isolation};
use crate::cluster::Underlay;
use crate::traffic::Endpoint;

/// By which containerd sets up `lo`, before any network.
pub(super) const LOOPBACK_PLUGIN: &str = "/usr/lib/cni/loopback";

const PATIENCE: Duration = Duration::from_secs(20);
/// What a pod may receive, in bits per second, and how its annotation says it.
const BANDWIDTH: (u64, &str) = (500_000_000, "500M");
/// For a command in a container, in seconds.
const COMMAND_SECONDS: i64 = 10;

/// A running containerd on node a; ended when dropped. Its containers' shims would live on, and end with the test's processes.
pub(super) struct Containerd {
    child: Child,
    log: PathBuf,
    client: Client,
}

impl Containerd {
    /// Starts it in the node's network, gives it the image and waits until it can run pods.
    pub(super) fn start(underlay: &Underlay, archive: &Path) -> Containerd {
        let place = underlay.directory.file("containerd");
        fs::create_dir(&place).expect("directory");
        let (file, socket, log) = (place.join("config.toml"), place.join("c.sock"), place.join("log"));
        fs::write(&file, configuration(underlay, &place, &socket)).expect("written");
        let output = File::create(&log).expect("log");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("log")).stderr(output);
        let mut child = underlay.nodes[0].handle().enter(|| command.spawn()).expect("entered").expect("containerd");
        let client = wait_until_ready(&mut child, &socket, &log);
        let containerd = Containerd { child, log, client };
        let mut import = Command::new("ctr");
        import.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let imported = import.output().expect("ctr");
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        containerd
    }

    /// Ends it as its unit would be stopped.
    pub(super) fn stop(mut self) {
        // The child is ours and not waited for, so its number is still its own.
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).expect("told to end");
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("child").is_none() {
            assert!(Instant::now() < end, "containerd does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn config(name: &str, ports: Option<(u16, u16)>) -> PodSandboxConfig {
        let mapping = |(host, container): (u16, u16)| PortMapping {
            protocol: 0,
            container_port: container.into(),
            host_port: host.into(),
        };
        let text = |name: &str| name.to_owned();
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: text(name), uid: format!("uid-{name}"), namespace: text("web") }),
            hostname: text(name),
            log_directory: String::new(),
            port_mappings: ports.map(mapping).into_iter().collect(),
            labels: HashMap::from([(text("app"), text("web"))]),
            annotations: HashMap::from([(text("kubernetes.io/ingress-bandwidth"), text(BANDWIDTH.1))]),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: isolation::group() }),
        }
    }
}

/// Only what differs from what Debian's package starts with: places, and what a container without all rights cannot do.
fn configuration(underlay: &Underlay, place: &Path, socket: &Path) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {socket:?}\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n\
         [{cri}]\nsandbox_image = {:?}\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
         [{cri}.cni]\nbin_dir = {:?}\nconf_dir = {:?}\n\
         [{cri}.containerd]\ndefault_runtime_name = \"runc\"\n\
         [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n",
        place.join("root"),
        place.join("state"),
        place.join("opt"),
        image::NAME,
        plugins(&underlay.directory),
        networks(&underlay.directory),
    )
}

fn wait_until_ready(child: &mut Child, socket: &Path, log: &Path) -> Client {
    let end = Instant::now() + PATIENCE;
    let said = || fs::read_to_string(log).unwrap_or_default();
    loop {
        let ended = child.try_wait().expect("child");
        assert!(ended.is_none(), "containerd ended with {ended:?}: {}", said());
        let client = Client::connect(socket);
        let lacking = client.as_ref().map(Client::not_ready);
        if let Ok(Ok(lacking)) = &lacking
            && lacking.is_empty()
        {
            return client.expect("it answered");
        }
        assert!(Instant::now() < end, "containerd is not ready: {lacking:?}: {}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Runtime for Containerd {
    fn start(&self, name: &str, ports: Option<(u16, u16)>) -> Result<Container, String> {
        let config = Self::config(name, ports);
        let pod = self.client.run_pod(&config).map_err(|status| status.message().to_owned())?;
        let status = self.client.pod_status(&pod).expect("its status");
        let information: Value = serde_json::from_str(&status.information).expect("a document");
        let namespaces = information["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces");
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").expect("one of a network");
        let namespace = NamespaceHandle::open(network["path"].as_str().expect("a path")).expect("opened");
        let addresses = status.addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let variable = (image::VARIABLE, name);
        let id = self.client.start_container((&pod, &config), image::NAME, &image::SERVE, variable).expect("started");
        Ok(Container { id, pod, endpoint: Endpoint { name: name.to_owned(), namespace, addresses } })
    }

    fn execute(&self, container: &Container, words: &[&str]) -> Result<String, String> {
        self.client.execute(&container.id, words, COMMAND_SECONDS)
    }

    fn remove(&self, container: &Container) {
        self.client.remove_pod(&container.pod).expect("removed");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd: {}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a kubelet says about a pod reaches the agent.
fn is_known(world: &World, containerd: &Containerd) {
    let pod = containerd.start("named", None).expect("started");
    let ports: Vec<PortReport> = world.agent().client().show("ports").expect("report");
    let port = ports.iter().find(|port| port.name == "web/named").unwrap_or_else(|| panic!("{ports:?}"));
    assert_eq!((port.ingress_bits_per_second, port.egress_bits_per_second), (Some(BANDWIDTH.0), None));
    world.remove(containerd, pod);
}

pub(super) fn connects_its_pods() {
    let world = World::create();
    let containerd = Containerd::start(&world.underlay, &world.image);
    is_known(&world, &containerd);
    world.check(&containerd);
    containerd.stop();
    world.wait_until_clean();
}
