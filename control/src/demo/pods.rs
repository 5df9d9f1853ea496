//! Pods: network namespaces, plugged in by `millrace-cni` as a container runtime would do it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use millrace_cni::spec::NetworkResult;
use millrace_engine::port::namespace::NamespaceHandle;

use super::traffic::Endpoint;
use crate::kernel::Namespace;

/// Name of the plugin, and of the network in its configuration.
const PLUGIN: &str = "millrace-cni";
const NETWORK: &str = "millrace";
const INTERFACE: &str = "eth0";

/// A pod that is plugged in.
#[derive(Debug)]
pub(super) struct Pod {
    /// Its name; its Kubernetes namespace is `default`.
    pub(super) name: &'static str,
    /// Name of its node.
    pub(super) node: &'static str,
    /// Where its traffic starts and ends.
    pub(super) endpoint: Endpoint,
    namespace: Namespace,
}

/// What a runtime knows about the node it runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runtime<'a> {
    /// Directory with the plugin.
    pub(super) directory: &'a Path,
    /// The node's namespace.
    pub(super) node: &'a NamespaceHandle,
    /// The agent's socket.
    pub(super) socket: &'a Path,
}

/// Makes `millrace-cni` out of this program, in `directory`: one file serves as both.
pub(super) fn install_plugin(directory: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("cannot find the program's own file")?;
    std::os::unix::fs::symlink(own, directory.join(PLUGIN)).context("cannot link the CNI plugin")
}

impl Pod {
    /// Plugs a namespace in.
    pub(super) fn plug(
        name: &'static str,
        node: &'static str,
        namespace: Namespace,
        runtime: Runtime<'_>,
    ) -> anyhow::Result<Pod> {
        let output = runtime.call("ADD", name, namespace.handle().path())?;
        let result: NetworkResult = serde_json::from_slice(&output).context("the result of CNI ADD cannot be read")?;
        let address = |address: &millrace_cni::spec::Address| Ok(address.address.parse::<IpNet>()?.addr());
        let addresses = result.ips.iter().map(address).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!addresses.is_empty(), "CNI ADD gave pod {name} no address");
        let endpoint = Endpoint { name: name.to_owned(), namespace: namespace.handle().clone(), addresses };
        Ok(Pod { name, node, endpoint, namespace })
    }

    /// Unplugs it, twice, as runtimes do when they are not sure of the first time.
    pub(super) fn unplug(&self, runtime: Runtime<'_>) -> anyhow::Result<()> {
        for _ in 0..2 {
            runtime.call("DEL", self.name, self.namespace.handle().path())?;
        }
        Ok(())
    }

    /// Leaves it standing.
    pub(super) fn keep(self) {
        // The handle it gives is not needed any more.
        let _ = self.namespace.keep();
    }
}

impl Runtime<'_> {
    /// Runs the plugin in the node's namespace and returns what it printed.
    fn call(&self, verb: &str, pod: &str, namespace: &Path) -> anyhow::Result<Vec<u8>> {
        let configuration = serde_json::json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": PLUGIN, "socket": self.socket, "timeoutSeconds": 20,
            "stateDirectory": self.socket.with_extension("state"),
        });
        let mut command = Command::new(self.directory.join(PLUGIN));
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("demo-{pod}"))
            .env("CNI_NETNS", namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", self.directory)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = self.node.enter(|| command.spawn())?.context("cannot run the CNI plugin")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(configuration.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let said = |key: &str| failure.get(key).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
        bail!(
            "CNI {verb} of pod {pod} failed ({}): {} {} {}",
            output.status,
            said("msg"),
            said("details"),
            String::from_utf8_lossy(&output.stderr).trim()
        )
    }
}
