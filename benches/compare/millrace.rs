//! This switch as it is rolled out: an agent in each node, objects in a directory, pods plugged in by the CNI plugin.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use millrace_cni::spec::NetworkResult;
use millrace_control::api::client::Client;
use millrace_control::api::model::StatusReport;
use millrace_engine::port::af_xdp::set_transmit_checksum;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::backend::{Backend, Kind};
use crate::program::finish;
use crate::services::{SERVICE_PORT, Services};
use crate::site::{Ends, POD_INTERFACE, POD_NODES, SERVER_PORT, Site, UPLINK, node_address};

const PATIENCE: Duration = Duration::from_secs(30);
/// Services in one file of objects.
const FILE_SERVICES: usize = 500;

pub(crate) struct Millrace {
    agents: Vec<Child>,
    site: Site,
    ends: Ends,
    directory: PathBuf,
}

impl Millrace {
    pub(crate) fn build(kind: Kind) -> anyhow::Result<Millrace> {
        let site = Site::build(kind.name())?;
        site.address_uplinks()?;
        let directory = std::env::temp_dir().join(format!("millrace-compare-{}-{}", std::process::id(), kind.name()));
        fs::create_dir_all(directory.join("objects"))?;
        let ends = site.ends([IpAddr::from([0, 0, 0, 0]); 3]);
        let mut switch = Millrace { agents: Vec::new(), site, ends, directory };
        fs::write(switch.directory.join("objects/cluster.yaml"), cluster(kind))?;
        let program = std::env::current_exe()?.with_file_name("millrace");
        ensure!(program.exists(), "{} does not exist: cargo build --release --bin millrace", program.display());
        std::os::unix::fs::symlink(&program, switch.directory.join("millrace-cni"))?;
        for number in 0..switch.site.nodes.len() {
            let agent = switch.start(&program, number)?;
            switch.agents.push(agent);
        }
        for number in 0..switch.agents.len() {
            switch.wait_until_ready(number)?;
        }
        let mut addresses = Vec::new();
        for number in 0..switch.site.pods.len() {
            addresses.push(switch.plug(number)?);
        }
        let addresses = <[IpAddr; 3]>::try_from(addresses).map_err(|_| anyhow::anyhow!("three pods"))?;
        fs::write(switch.directory.join("objects/pods.yaml"), pods(&addresses))?;
        switch.ends = switch.site.ends(addresses);
        Ok(switch)
    }

    fn file(&self, node: usize, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}.{suffix}", node_name(node)))
    }

    fn start(&self, program: &Path, number: usize) -> anyhow::Result<Child> {
        let (node, directory) = (self.site.nodes[number].handle(), self.directory.display());
        // A kernel would leave checksums to a wire that does not exist, and the node at the other end would drop them.
        node.enter(|| set_transmit_checksum(UPLINK, false))??;
        let (name, core) = (node_name(number), 1 - number);
        let text = format!(
            "node = \"{name}\"\nobjects_directory = \"{directory}/objects\"\nstate_directory = \"{directory}/{name}.state\"\n\
             socket = \"{directory}/{name}.sock\"\nworkers = 1\nworker_cpus = [{core}]\n"
        );
        fs::write(self.file(number, "toml"), text)?;
        let log = File::create(self.file(number, "log"))?;
        let mut command = Command::new(program);
        command.arg("agent").arg("--config").arg(self.file(number, "toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.enter(|| command.spawn())?.context("the agent does not start")
    }

    fn wait_until_ready(&self, number: usize) -> anyhow::Result<()> {
        let (client, end) = (Client::new(self.file(number, "sock")), Instant::now() + PATIENCE);
        while !client.show::<StatusReport>("status").is_ok_and(|status| status.generation > 0 && status.uplinks > 0) {
            let log = || fs::read_to_string(self.file(number, "log")).unwrap_or_default();
            ensure!(Instant::now() < end, "an agent is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Calls the plugin as a runtime does.
    fn plug(&self, number: usize) -> anyhow::Result<IpAddr> {
        let node = POD_NODES[number];
        let configuration = json!({
            "cniVersion": "1.1.0", "name": "millrace", "type": "millrace-cni", "socket": self.file(node, "sock"),
            "stateDirectory": self.file(node, "state"),
        });
        let mut command = Command::new(self.directory.join("millrace-cni"));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", format!("compare-{number}"))
            .env("CNI_NETNS", self.site.pods[number].handle().path())
            .env("CNI_IFNAME", POD_INTERFACE)
            .env("CNI_PATH", &self.directory)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{number}"));
        let printed = finish(self.site.nodes[node].handle(), command, &configuration.to_string())?;
        let result: NetworkResult = serde_json::from_str(&printed)?;
        let address = result.ips.first().context("ADD gave no address")?;
        Ok(address.address.split('/').next().unwrap_or_default().parse()?)
    }

    /// Writes the Services in files that no agent sees half of.
    fn write(&self, services: Services) -> anyhow::Result<()> {
        let objects = self.directory.join("objects");
        let places: Vec<_> = services.addresses().enumerate().collect();
        let files = places.chunks(FILE_SERVICES).map(|chunk| (chunk[0].0 / FILE_SERVICES, chunk));
        let mut partial = Vec::new();
        for (number, chunk) in files {
            let mut text = String::new();
            for (place, address) in chunk {
                service(&mut text, services, *place, &address.to_string())?;
            }
            let path = objects.join(format!(".services-{number}.json"));
            File::create(&path)?.write_all(text.as_bytes())?;
            partial.push((path, objects.join(format!("services-{number}.json"))));
        }
        for (from, to) in partial {
            fs::rename(from, to)?;
        }
        Ok(())
    }
}

impl Backend for Millrace {
    fn site(&self) -> &Site {
        &self.site
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }

    /// From before the first file is written until a connection to the last Service opens.
    fn program(&mut self, services: Services) -> anyhow::Result<Duration> {
        let listener = self.ends.far.open("listen", || std::net::TcpListener::bind(services.target()))?;
        let start = Instant::now();
        self.write(services)?;
        let target = services.dialled();
        loop {
            let patience = Duration::from_millis(20);
            if self.ends.client.open("connect", || TcpStream::connect_timeout(&target, patience)).is_ok() {
                drop(listener);
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < PATIENCE, "the last of {} Services does not answer", services.count);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn processes(&self) -> Vec<Pid> {
        self.agents.iter().map(Pid::from_child).collect()
    }
}

impl Drop for Millrace {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            // The child is ours and not waited for, so its number is still its own. One that is stopped must go on to end.
            for signal in [Signal::CONT, Signal::TERM] {
                let _ = kill_process(Pid::from_child(agent), signal);
            }
            let end = Instant::now() + PATIENCE;
            while matches!(agent.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn node_name(number: usize) -> &'static str {
    if number == 0 { "a" } else { "b" }
}

fn cluster(kind: Kind) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\n\
        apiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {name: pods}\nspec: {cidr: 10.244.0.0/16}\n"
        .to_owned();
    let port = if kind == Kind::MillraceAfXdp { ", port: af_xdp" } else { "" };
    for number in [0, 1] {
        let (name, address) = (node_name(number), node_address(number));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n\
             ---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}-{UPLINK}}}\n\
             spec: {{node: {name}, interface: {UPLINK}{port}}}\n"
        );
    }
    text
}

fn pods(addresses: &[IpAddr; 3]) -> String {
    let pod = |(number, address): (usize, &IpAddr)| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, namespace: default}}\n\
             spec: {{nodeName: {}, containers: [{{name: compare}}]}}\nstatus: {{podIPs: [{{ip: '{address}'}}]}}\n",
            node_name(POD_NODES[number])
        )
    };
    addresses.iter().enumerate().map(pod).collect()
}

fn service(text: &mut String, services: Services, place: usize, address: &str) -> std::fmt::Result {
    let name = format!("s{place}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"port": SERVICE_PORT, "targetPort": SERVER_PORT, "protocol": "TCP"}],
        },
    });
    let endpoint = |address: IpAddr| json!({"addresses": [address], "conditions": {"ready": true}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("s{place}-0"), "namespace": "default", "labels": {"kubernetes.io/service-name": name},
        },
        "ports": [{"port": SERVER_PORT, "protocol": "TCP"}],
        "endpoints": services.endpoints(place).into_iter().map(endpoint).collect::<Vec<_>>(),
    });
    write!(text, "---\n{service}\n---\n{slice}\n")
}
