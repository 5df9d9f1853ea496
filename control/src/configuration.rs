//! The agent's configuration: one TOML file, documented here once and checked into types that cannot be wrong.
//!
//! [`Configuration`] has no public constructor but [`load`](Configuration::load) and
//! [`parse`](Configuration::parse); an error names the file and the field. The commented default file that
//! `millrace agent --print-default` prints is made from the very fields below, so it cannot fall behind. What
//! concerns the cluster (nodes, pools, networks) is not here: those are objects.

mod check;
mod error;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::state::ConnectionTimeouts;
use millrace_engine::tables::{PortRange, Vni};
use serde::{Deserialize, Serialize};

use self::check::{Wrong, check};
pub use self::error::ConfigurationError;
use crate::ipam::AddressSource;
use crate::plan::ServiceOptions;

/// Where the file is, unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/millrace/agent.toml";

/// Where kube-proxy answers probes by default (`--healthz-bind-address`).
const DEFAULT_HEALTH_ADDRESS: &str = "0.0.0.0:10256";
const DEFAULT_METRICS_ADDRESS: &str = "127.0.0.1:10249";

/// Longest silence that may be allowed to a connection: the table's times are milliseconds modulo 2^32.
const LONGEST_SILENCE_SECONDS: u32 = 7 * 86_400;

/// Longest path of a unix socket, without the final NUL (`sockaddr_un` in include/uapi/linux/un.h).
const SOCKET_PATH_BYTES: usize = 107;

/// Most frames and entries accepted for one worker: 2 GiB of head frames.
const LARGEST_COUNT: usize = 1 << 20;

/// Makes a table of the file: the struct that serde reads, its defaults, and its text with comments.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $table:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr;)+ }
        sections { $($section:ident: $section_type:ident;)* }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        struct $table {
            $($(#[doc = $doc])+ $field: $type,)+
            $($section: $section_type,)*
        }

        impl Default for $table {
            fn default() -> Self {
                Self { $($field: $default,)+ $($section: $section_type::default(),)* }
            }
        }

        impl $table {
            const ABOUT: &str = concat!($($about, "\n",)+);

            /// Each field with its comment, then each section.
            fn write_to(&self, text: &mut String) {
                write_comment(text, Self::ABOUT);
                $(write_field(text, concat!($($doc, "\n",)+), stringify!($field), &self.$field);)+
                $(
                    text.push_str(concat!("\n[", stringify!($section), "]\n"));
                    self.$section.write_to(text);
                )*
            }
        }
    };
}

table! {
    /// Configuration of the Millrace node agent. All fields may be left out; the values below are the defaults.
    File {
        /// Name of this node, as its Node object is called. Empty: the host's name.
        node: String = String::new();
        /// Directory of YAML files with the objects of the cluster. It is watched; changes apply at once. Unused where
        /// `api_server` names a server.
        objects_directory: PathBuf = "/etc/millrace/objects".into();
        /// Directory for what the agent must remember over a restart: attachments, claimed address blocks.
        state_directory: PathBuf = "/var/lib/millrace".into();
        /// Directory, on a tmpfs, where connections and affinities outlive the agent. Empty: `agent.kept` beside `socket`.
        kept_directory: PathBuf = PathBuf::new();
        /// Unix socket of the local API, for `millrace` and `millrace-cni`. Only root may open it.
        socket: PathBuf = millrace_cni::configuration::DEFAULT_SOCKET.into();
        /// Worker threads, at most 16. 0: as many as `worker_cpus` names, or else one for every two CPUs, at most 4.
        workers: usize = 0;
        /// CPUs the workers are pinned to, one for each worker. Empty: the first CPUs the agent may run on.
        worker_cpus: Vec<usize> = Vec::new();
        /// Whether workers poll without ever sleeping: the first packet after a pause is faster by tens of
        /// microseconds, and each worker costs a whole CPU at all times.
        busy_poll: bool = false;
        /// Connections the node tracks; 136 bytes each, for all workers together. Raise it when `connections.evicted`
        /// grows while nobody floods the node.
        connections: usize = limits::CONNECTIONS;
    }
    sections {
        api_server: ApiServer;
        cni: Cni;
        addresses: Addresses;
        frame_memory: FrameMemory;
        flow_cache: FlowCache;
        tunnel: Tunnel;
        services: Services;
        timeouts: Timeouts;
        masquerade: Masquerade;
        policies: Policies;
        metrics: Metrics;
    }
}

table! {
    /// The API server of a cluster, in place of the directory of objects.
    ApiServer {
        /// Kubeconfig file whose current context leads to the server. Empty: none.
        kubeconfig: PathBuf = PathBuf::new();
        /// Whether the agent runs in a pod of the cluster and is to use the pod's service account.
        in_cluster: bool = false;
    }
    sections {}
}

table! {
    /// The container runtime.
    Cni {
        /// Directory in which the runtime looks for network configurations, /etc/cni/net.d mostly: the agent puts
        /// 10-millrace.conflist there once pods can be plugged in. Empty: somebody else does.
        configuration_directory: PathBuf = PathBuf::new();
    }
    sections {}
}

table! {
    /// Addresses of pods.
    Addresses {
        /// Where they come from: "blocks" claims small blocks out of IpPool objects as they are needed, "pod-cidr" uses
        /// the prefixes in `spec.podCIDRs` of this node's Node object and claims nothing.
        source: String = "blocks".into();
    }
    sections {}
}

table! {
    /// Packet memory of each worker.
    FrameMemory {
        /// Frames of 2 KiB for packet heads. Raise it when `frames_exhausted` is counted.
        head_frames: usize = limits::HEAD_FRAMES;
        /// Buffers of 64 KiB for what follows the head of a large TCP unit.
        big_buffers: usize = limits::BIG_BUFFERS;
    }
    sections {}
}

table! {
    /// Flow cache of each worker; a power of two each.
    FlowCache {
        /// IPv4 flows; 184 bytes each.
        ipv4_entries: usize = limits::FLOWS_IPV4;
        /// IPv6 flows; 248 bytes each.
        ipv6_entries: usize = limits::FLOWS_IPV6;
    }
    sections {}
}

table! {
    /// The VXLAN overlay between nodes; all nodes must agree.
    Tunnel {
        /// VNI of the pod network, below 2^24.
        vni: u32 = 1;
        /// UDP port of VXLAN. 8472 is what Linux and flannel use by default, 4789 is the registered one.
        port: u16 = 8472;
    }
    sections {}
}

table! {
    /// Services of the cluster.
    Services {
        /// Ranges that ClusterIPs are taken from, beside those that ServiceCIDR objects name. A packet to an address
        /// in them that belongs to no Service is dropped.
        cluster_ip_ranges: Vec<String> = Vec::new();
        /// Which addresses of this node serve node ports, as prefixes. Empty: the node's internal addresses.
        node_port_addresses: Vec<String> = Vec::new();
        /// Whether connections of pods to ClusterIPs are masqueraded too, as kube-proxy's `--masquerade-all` does.
        masquerade_all: bool = false;
        /// Where load balancers and probes ask whether this node serves Services (`/healthz`) and its agent lives
        /// (`/livez`), as they ask kube-proxy. Empty: nowhere.
        health_address: String = DEFAULT_HEALTH_ADDRESS.into();
    }
    sections {}
}

table! {
    /// Metrics.
    Metrics {
        /// Where a monitoring system reads `/metrics`; anybody who reaches it may. Empty: nowhere.
        address: String = DEFAULT_METRICS_ADDRESS.into();
    }
    sections {}
}

table! {
    /// Seconds for which connections may be silent before they are forgotten, at least 1 and at most a week; kube-proxy has
    /// them under `conntrack`.
    Timeouts {
        /// TCP, established.
        tcp_established: u32 = 86_400;
        /// TCP, closed by one end.
        tcp_close_wait: u32 = 3_600;
        /// UDP, not answered yet, or for less than two seconds.
        udp: u32 = 30;
        /// UDP, answered.
        udp_stream: u32 = 120;
    }
    sections {}
}

table! {
    /// Connections that leave with an address of the node's own.
    Masquerade {
        /// First source port they get. Each destination address and port has the whole range to itself; widen it when
        /// `masquerade_ports_exhausted` is counted.
        first_port: u16 = limits::MASQUERADE_PORTS.0;
        /// Last source port they get.
        last_port: u16 = limits::MASQUERADE_PORTS.1;
        /// First source port of those that leave the cluster, under an address of an uplink. The host's own sockets are
        /// kept off these ports (`net.ipv4.ip_local_reserved_ports`); leave it some of `ip_local_port_range`.
        outside_first_port: u16 = limits::OUTSIDE_PORTS.0;
        /// Last source port of those.
        outside_last_port: u16 = limits::OUTSIDE_PORTS.1;
        /// Networks outside the cluster, as prefixes, that route the addresses of pods to their nodes: towards them pods
        /// keep their own addresses, and from them pods can be called.
        exempt: Vec<String> = Vec::new();
    }
    sections {}
}

table! {
    /// Policies.
    Policies {
        /// What holds where labels decide that are not known yet, of a pod plugged in before its object, of a namespace or
        /// of a peer: "closed" drops what a policy could deny once they are known, "open" takes no policy to mean them.
        unknown_pods: String = "closed".into();
    }
    sections {}
}

impl Timeouts {
    fn fields(&self) -> [(&'static str, u32); 4] {
        [
            ("timeouts.tcp_established", self.tcp_established),
            ("timeouts.tcp_close_wait", self.tcp_close_wait),
            ("timeouts.udp", self.udp),
            ("timeouts.udp_stream", self.udp_stream),
        ]
    }
}

/// The one choice for pods that are not known yet which is not the default.
const OPEN: &str = "open";

/// The address source that is not the default.
const POD_CIDR: &str = "pod-cidr";

/// Where the objects of the cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectSource<'a> {
    /// A directory of files.
    Directory(&'a Path),
    /// The server that a kubeconfig leads to.
    Kubeconfig(&'a Path),
    /// The server of the cluster that the agent is a pod of.
    Cluster,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    file: File,
    workers: NonZeroUsize,
    vni: Vni,
    services: ServiceOptions,
    health_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    masquerade_ports: PortRange,
    outside_ports: PortRange,
    exempt: Vec<IpNet>,
}

impl Configuration {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or is wrong; the error names the file and the field.
    pub fn load(file: &Path) -> Result<Configuration, ConfigurationError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigurationError::Read { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    /// Checks a text; `file` is what errors call it.
    ///
    /// # Errors
    /// When it is wrong; the error names the field.
    pub fn parse(file: &Path, text: &str) -> Result<Configuration, ConfigurationError> {
        let parsed: File = toml::from_str(text)
            .map_err(|source| ConfigurationError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
        check(&parsed).map_err(|Wrong { field, value, reason }| ConfigurationError::Value {
            file: file.to_owned(),
            field,
            value,
            reason,
        })?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = NonZeroUsize::new(parsed.workers)
            .or_else(|| NonZeroUsize::new(parsed.worker_cpus.len()))
            .or_else(|| NonZeroUsize::new(cpus.div_ceil(2).clamp(1, 4)))
            .unwrap_or(NonZeroUsize::MIN);
        let vni = Vni::new(parsed.tunnel.vni).ok_or_else(|| ConfigurationError::Value {
            file: file.to_owned(),
            field: "tunnel.vni",
            value: parsed.tunnel.vni.to_string(),
            reason: "a VNI has 24 bits",
        })?;
        let wrong = |field, value, reason| ConfigurationError::Value { file: file.to_owned(), field, value, reason };
        let services = ServiceOptions {
            ranges: prefixes(&parsed.services.cluster_ip_ranges)
                .map_err(|value| wrong("services.cluster_ip_ranges", value, "is not a prefix such as 10.96.0.0/12"))?,
            node_port_addresses: prefixes(&parsed.services.node_port_addresses).map_err(|value| {
                wrong("services.node_port_addresses", value, "is not a prefix such as 192.0.2.0/24")
            })?,
            masquerade_all: parsed.services.masquerade_all,
        };
        let health_address = match parsed.services.health_address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                wrong("services.health_address", text.to_owned(), "is not an address and port such as 0.0.0.0:10256")
            })?),
        };
        let metrics_address = match parsed.metrics.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                wrong("metrics.address", text.to_owned(), "is not an address and port such as 127.0.0.1:10249")
            })?),
        };
        for (field, seconds) in parsed.timeouts.fields() {
            if !(1..=LONGEST_SILENCE_SECONDS).contains(&seconds) {
                return Err(wrong(field, seconds.to_string(), "is not from 1 to 604800 seconds"));
            }
        }
        let range = |field, first, last: u16| {
            let reason = "the range from the first port, which is not 0, has no port";
            PortRange::new(first, last).ok_or_else(|| wrong(field, last.to_string(), reason))
        };
        let Masquerade { first_port, last_port, outside_first_port, outside_last_port, .. } = parsed.masquerade;
        let masquerade_ports = range("masquerade.last_port", first_port, last_port)?;
        let outside_ports = range("masquerade.outside_last_port", outside_first_port, outside_last_port)?;
        let exempt = prefixes(&parsed.masquerade.exempt)
            .map_err(|value| wrong("masquerade.exempt", value, "is not a prefix such as 192.0.2.0/24"))?;
        if exempt.len() > limits::OUTSIDE_EXEMPT {
            return Err(wrong("masquerade.exempt", format!("{} networks", exempt.len()), "there may be 64 at most"));
        }
        Ok(Configuration {
            file: parsed,
            workers,
            vni,
            services,
            health_address,
            metrics_address,
            masquerade_ports,
            outside_ports,
            exempt,
        })
    }

    /// Whether pods that policies may select are open until their objects are known.
    #[must_use]
    pub fn unknown_pods_open(&self) -> bool {
        self.file.policies.unknown_pods == OPEN
    }

    /// What is said of Services.
    #[must_use]
    pub fn services(&self) -> &ServiceOptions {
        &self.services
    }

    /// Where probes of kube-proxy's kind are answered, if anywhere.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Where metrics are read, if anywhere.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// How long connections may be silent.
    #[must_use]
    pub fn timeouts(&self) -> ConnectionTimeouts {
        let Timeouts { tcp_established, tcp_close_wait, udp, udp_stream } = self.file.timeouts;
        let of = |seconds: u32| Duration::from_secs(u64::from(seconds));
        ConnectionTimeouts {
            tcp_established: of(tcp_established),
            tcp_close_wait: of(tcp_close_wait),
            udp: of(udp),
            udp_stream: of(udp_stream),
        }
    }

    /// Source ports of masqueraded connections.
    #[must_use]
    pub fn masquerade_ports(&self) -> PortRange {
        self.masquerade_ports
    }

    /// Source ports of connections that leave under an address of an uplink.
    #[must_use]
    pub fn outside_ports(&self) -> PortRange {
        self.outside_ports
    }

    /// Networks outside that know the way to pods.
    #[must_use]
    pub fn exempt(&self) -> &[IpNet] {
        &self.exempt
    }

    /// The default file with comments.
    #[must_use]
    pub fn default_text() -> String {
        let mut text = String::new();
        File::default().write_to(&mut text);
        text
    }

    /// Name of this node; `None` means the host's name.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        Some(self.file.node.as_str()).filter(|name| !name.is_empty())
    }

    /// Where the objects of the cluster are.
    #[must_use]
    pub fn objects(&self) -> ObjectSource<'_> {
        let ApiServer { kubeconfig, in_cluster } = &self.file.api_server;
        if *in_cluster {
            ObjectSource::Cluster
        } else if !kubeconfig.as_os_str().is_empty() {
            ObjectSource::Kubeconfig(kubeconfig)
        } else {
            ObjectSource::Directory(&self.file.objects_directory)
        }
    }

    /// The same with the objects of the server that a kubeconfig leads to, whatever the file says.
    #[must_use]
    pub fn with_kubeconfig(mut self, kubeconfig: PathBuf) -> Self {
        self.file.api_server = ApiServer { kubeconfig, in_cluster: false };
        self
    }

    /// The same with the objects of the cluster that the agent is a pod of, whatever the file says.
    #[must_use]
    pub fn within_cluster(mut self) -> Self {
        self.file.api_server = ApiServer { kubeconfig: PathBuf::new(), in_cluster: true };
        self
    }

    /// Directory for what the next agent goes on with, and whether the file names it.
    #[must_use]
    pub fn kept_directory(&self) -> (PathBuf, bool) {
        let named = Some(&self.file.kept_directory).filter(|named| !named.as_os_str().is_empty());
        (named.cloned().unwrap_or_else(|| self.file.socket.with_extension("kept")), named.is_some())
    }

    /// The same for the node of this name, whatever the file says; the name is checked when the agent starts.
    #[must_use]
    pub fn for_node(mut self, name: String) -> Self {
        self.file.node = name;
        self
    }

    /// Where the agent tells the container runtime of the plugin, if it does.
    #[must_use]
    pub fn cni_configuration_directory(&self) -> Option<&Path> {
        Some(self.file.cni.configuration_directory.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// Directory for what outlives a restart.
    #[must_use]
    pub fn state_directory(&self) -> &Path {
        &self.file.state_directory
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.file.socket
    }

    /// How many workers, at most `limits::WORKERS`.
    #[must_use]
    pub fn workers(&self) -> NonZeroUsize {
        self.workers
    }

    /// One CPU for each worker; empty means the first the agent may run on.
    #[must_use]
    pub fn worker_cpus(&self) -> &[usize] {
        &self.file.worker_cpus
    }

    /// Whether workers never sleep.
    #[must_use]
    pub fn busy_poll(&self) -> bool {
        self.file.busy_poll
    }

    /// Head frames of each worker.
    #[must_use]
    pub fn head_frames(&self) -> usize {
        self.file.frame_memory.head_frames
    }

    /// Big buffers of each worker.
    #[must_use]
    pub fn big_buffers(&self) -> usize {
        self.file.frame_memory.big_buffers
    }

    /// Connections of the node.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.file.connections
    }

    /// IPv4 entries of each worker's flow cache, a power of two.
    #[must_use]
    pub fn flows_ipv4(&self) -> usize {
        self.file.flow_cache.ipv4_entries
    }

    /// IPv6 entries of each worker's flow cache, a power of two.
    #[must_use]
    pub fn flows_ipv6(&self) -> usize {
        self.file.flow_cache.ipv6_entries
    }

    /// Where addresses of pods come from.
    #[must_use]
    pub fn address_source(&self) -> AddressSource {
        if self.file.addresses.source == POD_CIDR { AddressSource::PodCidr } else { AddressSource::Blocks }
    }

    /// VNI of the pod network.
    #[must_use]
    pub fn vni(&self) -> Vni {
        self.vni
    }

    /// UDP port of VXLAN, never 0.
    #[must_use]
    pub fn vxlan_port(&self) -> u16 {
        self.file.tunnel.port
    }
}

/// The prefixes, or the text that is none.
fn prefixes(texts: &[String]) -> Result<Vec<IpNet>, String> {
    texts.iter().map(|text| text.parse::<IpNet>().map(|prefix| prefix.trunc()).map_err(|_| text.clone())).collect()
}

fn write_comment(text: &mut String, comment: &str) {
    for line in comment.lines() {
        // Doc comments keep the blank after the slashes.
        let _ = writeln!(text, "#{line}");
    }
}

fn write_field(text: &mut String, comment: &str, name: &str, value: &impl Serialize) {
    text.push('\n');
    write_comment(text, comment);
    let value = toml::Value::try_from(value).map_or_else(|error| format!("# {error}"), |value| value.to_string());
    let _ = writeln!(text, "{name} = {value}");
}

#[cfg(test)]
mod tests;
