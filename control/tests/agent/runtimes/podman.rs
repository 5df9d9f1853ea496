//! podman with its CNI backend, everything of it in the directory of the test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use millrace_control::api::model::ServiceReport;
use millrace_control::kernel::{NamespaceHandle, Netlink};
use serde_json::Value;

use super::world::{Container, Runtime, World};
use super::{image, isolation};
use crate::cluster::Underlay;
use crate::traffic::Endpoint;

/// For one command of podman, in seconds.
const PATIENCE: &str = "30";

/// What a container asks for.
const ADDRESSES: [&str; 2] = ["10.1.77.7", "fd00:1::77:7"];
const MAC: &str = "02:00:00:00:77:07";

/// podman on node a.
pub(super) struct Podman {
    node: NamespaceHandle,
    place: PathBuf,
}

impl Podman {
    /// Configures it and gives it the image.
    pub(super) fn create(underlay: &Underlay, archive: &std::path::Path) -> Podman {
        let directory = &underlay.directory;
        let place = directory.file("podman");
        fs::create_dir(&place).expect("directory");
        // A container may have no more than this program; podman would ask for what an unlimited machine has.
        let limit = |resource, name: &str| {
            let hard = rustix::process::getrlimit(resource).maximum;
            hard.map_or_else(String::new, |hard| format!("\"{name}={hard}:{hard}\","))
        };
        let limits =
            [limit(rustix::process::Resource::Nofile, "nofile"), limit(rustix::process::Resource::Nproc, "nproc")]
                .concat();
        let configuration = format!(
            "[containers]\ndefault_ulimits = [{limits}]\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\nnetwork_config_dir = {:?}\ndefault_network = \"millrace\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n",
            super::world::plugins(directory),
            super::world::networks(directory),
        );
        fs::write(place.join("containers.conf"), configuration).expect("written");
        let podman = Podman { node: underlay.nodes[0].handle().clone(), place };
        podman.run(&["load", "--quiet", "--input", &archive.display().to_string()]).expect("the image is loaded");
        podman
    }

    /// Runs podman in the node's network: what it printed, or what went wrong.
    pub(super) fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args([PATIENCE, "podman", "--storage-driver", "overlay", "--root"]).arg(self.place.join("store"));
        command.arg("--runroot").arg(self.place.join("run")).args(words);
        command.env("CONTAINERS_CONF", self.place.join("containers.conf")).stdin(std::process::Stdio::null());
        let output = self.node.enter(|| command.output()).expect("entered").expect("podman");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // Warnings would hide that it refuses a part of the configuration.
        if output.status.success() && !text(&output.stderr).contains("level=") {
            return Ok(text(&output.stdout));
        }
        Err(format!("podman {words:?}: {}: {}", output.status, text(&output.stderr)))
    }

    /// Removes what is left of a container that could not be started.
    pub(super) fn forget(&self, name: &str) {
        self.run(&["rm", "--force", name]).expect("removed");
    }

    /// Starts a container with these options.
    pub(super) fn start_with(&self, name: &str, options: &[&str]) -> Result<Container, String> {
        let (variable, group) = (format!("{}={name}", image::VARIABLE), isolation::group());
        let always = ["run", "--detach", "--name", name, "--env", &variable, "--cgroup-parent", &group];
        self.run(&[&always, options, &[image::NAME], &image::SERVE].concat())?;
        let said: Value = serde_json::from_str(&self.run(&["inspect", name])?).map_err(|error| error.to_string())?;
        let network = &said[0]["NetworkSettings"];
        let place = network["SandboxKey"].as_str().unwrap_or_default();
        let told = &network["Networks"]["millrace"];
        let addresses =
            ["IPAddress", "GlobalIPv6Address"].map(|key| told[key].as_str().and_then(|text| text.parse().ok()));
        let namespace = NamespaceHandle::open(place).map_err(|error| format!("{error}: {network}"))?;
        let endpoint =
            Endpoint { name: name.to_owned(), namespace, addresses: addresses.into_iter().flatten().collect() };
        let id = said[0]["Id"].as_str().unwrap_or_default().to_owned();
        Ok(Container { pod: id.clone(), id, endpoint })
    }
}

impl Runtime for Podman {
    fn start(&self, name: &str, ports: Option<(u16, u16)>) -> Result<Container, String> {
        let mapping = ports.map(|(host, container)| format!("--publish={host}:{container}"));
        self.start_with(name, &mapping.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn execute(&self, container: &Container, words: &[&str]) -> Result<String, String> {
        self.run(&[&["exec", &container.id], words].concat())
    }

    fn remove(&self, container: &Container) {
        self.run(&["rm", "--force", "--time", "0", &container.pod]).expect("removed");
    }
}

/// The name of its port: podman says none that has a namespace too.
pub(super) fn known_as(container: &Container) -> String {
    format!("default/container-{}", &container.id[..32])
}

/// What is asked for on podman's command line reaches the agent.
fn gets_what_it_asks_for(world: &World, podman: &Podman) {
    let [ipv4, ipv6] = ADDRESSES;
    let options = ["--ip", ipv4, "--ip6", ipv6, "--mac-address", MAC, "--publish", "8090:8080/udp"];
    let container = podman.start_with("named", &options).expect("started");
    let addresses: Vec<String> = container.endpoint.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ADDRESSES);
    let link = Netlink::open_in(&container.endpoint.namespace).expect("netlink").link("eth0").expect("asked");
    assert_eq!(link.map(|link| link.mac.to_string()), Some(MAC.to_owned()));
    let services: Vec<ServiceReport> = world.agent().client().show("services").expect("report");
    let port = services.iter().find(|service| service.name == format!("pod {}:8090", known_as(&container)));
    assert!(port.is_some_and(|port| port.protocol == "udp"), "{services:?}");
    world.remove(podman, container);
}

pub(super) fn connects_its_containers() {
    let world = World::create();
    let podman = Podman::create(&world.underlay, &world.image);
    gets_what_it_asks_for(&world, &podman);
    world.check(&podman);
    world.wait_until_clean();
}
