//! The part of the container runtime interface (`runtime.v1` of Kubernetes) that pods are run by: its messages, and a client of a
//! runtime's socket.
//!
//! The messages are those of `api.proto` with the fields that the test sets or reads, by their numbers there; what else a runtime
//! sends is passed over. Written here rather than generated, since the generator needs `protoc`, which a machine that builds
//! Millrace need not have.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use axum::http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// How long a runtime may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who a pod is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// A port of the host that leads to the pod.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PortMapping {
    /// 0 TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub(super) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(super) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(super) host_port: i32,
}

/// What only a pod on Linux has.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
}

/// A pod.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    #[prost(string, tag = "3")]
    pub(super) log_directory: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "6")]
    pub(super) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    pub(super) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// Request or answer that is one identifier; also of requests about a pod or a container.
#[derive(Clone, PartialEq, Message)]
struct Identifier {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

/// A variable of a container's environment.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<Name>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    envs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    /// In seconds.
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Conditions {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Conditions>,
}

/// A message without fields, or none of interest.
#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// What a runtime says about a pod.
pub(super) struct PodStatus {
    /// Its addresses, the first one before others.
    pub(super) addresses: Vec<String>,
    /// What else the runtime tells who asks for everything: a document of its own form.
    pub(super) information: String,
}

/// A client of one runtime. Every call waits for its answer.
pub(super) struct Client {
    executor: Runtime,
    channel: Channel,
}

impl Client {
    /// Connects to the runtime that listens there.
    pub(super) fn connect(socket: &Path) -> Result<Client, tonic::transport::Error> {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?.timeout(PATIENCE);
        let channel = executor.block_on(endpoint.connect())?;
        Ok(Client { executor, channel })
    }

    fn call<Asked, Answer>(&self, method: &'static str, asked: Asked) -> Result<Answer, Status>
    where
        Asked: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse().expect("a path");
        self.executor.block_on(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let answer = client.unary(Request::new(asked), path, ProstCodec::<Asked, Answer>::default()).await?;
            Ok(answer.into_inner())
        })
    }

    /// What the runtime still lacks to run pods; nothing if it is ready.
    pub(super) fn not_ready(&self) -> Result<Vec<String>, Status> {
        let answer: StatusResponse = self.call("Status", Empty {})?;
        let all = answer.status.unwrap_or_default().conditions;
        let lacking = all.into_iter().filter(|condition| !condition.status);
        Ok(lacking.map(|condition| format!("{}: {}", condition.kind, condition.message)).collect())
    }

    /// Makes a pod with its network; returns its identifier.
    pub(super) fn run_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let answer: Identifier = self.call("RunPodSandbox", RunPodSandboxRequest { config: Some(config.clone()) })?;
        Ok(answer.id)
    }

    /// What the runtime says about a pod.
    pub(super) fn pod_status(&self, pod: &str) -> Result<PodStatus, Status> {
        let asked = PodSandboxStatusRequest { id: pod.to_owned(), verbose: true };
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", asked)?;
        let network = answer.status.unwrap_or_default().network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|address| address.ip);
        let addresses = std::iter::once(network.ip).chain(more).collect();
        Ok(PodStatus { addresses, information: answer.info.get("info").cloned().unwrap_or_default() })
    }

    /// Starts a container in a pod; returns its identifier.
    pub(super) fn start_container(
        &self,
        (pod, pod_config): (&str, &PodSandboxConfig),
        image: &str,
        command: &[&str],
        (key, value): (&str, &str),
    ) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(Name { name: "web".to_owned() }),
            image: Some(Name { name: image.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            envs: vec![KeyValue { key: key.to_owned(), value: value.to_owned() }],
        };
        let asked =
            CreateContainerRequest { pod: pod.to_owned(), config: Some(config), pod_config: Some(pod_config.clone()) };
        let Identifier { id } = self.call("CreateContainer", asked)?;
        let Empty {} = self.call("StartContainer", Identifier { id: id.clone() })?;
        Ok(id)
    }

    /// Runs a command in a container: its output, or what went wrong.
    pub(super) fn execute(&self, container: &str, command: &[&str], seconds: i64) -> Result<String, String> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let asked = ExecSyncRequest { container: container.to_owned(), command, timeout: seconds };
        let answer: ExecSyncResponse = self.call("ExecSync", asked).map_err(|status| status.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if answer.exit_code == 0 { Ok(text(&answer.stdout)) } else { Err(text(&answer.stderr)) }
    }

    /// Stops a pod, which takes its network away, and removes it.
    pub(super) fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let Empty {} = self.call(method, Identifier { id: pod.to_owned() })?;
        }
        Ok(())
    }
}
