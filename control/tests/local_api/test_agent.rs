//! The production API server on a socket of its own, with a pod network and reports that the test controls.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_control::api::model::*;
use millrace_control::api::server::{Limits, serve};
use millrace_control::api::socket::Socket;
use millrace_control::api::{Inspect, InspectFailure};
use millrace_control::cluster::FurtherInterface;
use millrace_control::cni_server::*;
use millrace_engine::packet::{Mac, PortIndex};

/// Attaches everything; containers whose identifier begins with `slow` take a while, with `panic` panic.
#[derive(Default)]
pub(crate) struct TestNetwork {
    pub(crate) attached: Mutex<BTreeMap<String, u16>>,
}

/// How long a `slow` container takes to attach.
pub(crate) const SLOW: Duration = Duration::from_millis(1_500);

impl PodNetwork for TestNetwork {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        let id = &request.key.container_id;
        if id.starts_with("slow") {
            std::thread::sleep(SLOW);
        }
        assert!(!id.starts_with("panic"), "a defect");
        let mut attached = self.attached.lock().expect("whole");
        let number = (1..1000).find(|number| !attached.values().any(|taken| taken == number)).expect("room");
        assert!(attached.insert(id.clone(), number).is_none(), "{id} is attached twice");
        Ok(AddResult {
            port: PortIndex(number),
            mac: Mac([2, 0, 0, 0, 0, number as u8]),
            mtu_bytes: 1450,
            addresses: vec![PodAddress {
                address: format!("10.1.0.{number}/32").parse().expect("an address"),
                gateway: Some("169.254.1.1".parse().expect("an address")),
            }],
            network: None,
            device: PodDevice::Tap,
            routes: vec![PodRoute {
                destination: "0.0.0.0/0".parse().expect("a prefix"),
                gateway: Some("169.254.1.1".parse().expect("an address")),
            }],
        })
    }

    fn further(&self, _request: &AddRequest) -> Result<Vec<FurtherInterface>, CniFailure> {
        Ok(Vec::new())
    }

    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure> {
        self.attached.lock().expect("whole").remove(&request.key.container_id);
        Ok(())
    }

    fn check(&self, attachment: &Attachment) -> Result<(), CniFailure> {
        match self.attached.lock().expect("whole").contains_key(&attachment.key.container_id) {
            true => Ok(()),
            false => Err(CniFailure::Broken("interface eth0 is missing".into())),
        }
    }

    fn status(&self) -> Result<(), CniFailure> {
        match self.attached.lock().expect("whole").len() {
            0 => Ok(()),
            _ => Err(CniFailure::NotAvailable("the objects are not known yet".into())),
        }
    }

    fn release(&self, _key: &AttachmentKey, _port: Option<PortIndex>) {}

    fn holders(&self) -> Vec<AttachmentKey> {
        Vec::new()
    }
}

impl Inspect for TestNetwork {
    fn ports(&self) -> Result<Vec<PortReport>, InspectFailure> {
        let attached = self.attached.lock().expect("whole");
        let report =
            |(name, index): (&String, &u16)| PortReport { name: name.clone(), index: *index, ..Default::default() };
        Ok(attached.iter().map(report).collect())
    }

    fn workers(&self) -> Result<Vec<WorkerReport>, InspectFailure> {
        Ok(vec![WorkerReport { worker: 1, ..Default::default() }])
    }

    fn routes(&self) -> Result<Vec<RouteReport>, InspectFailure> {
        Ok(vec![RouteReport { prefix: "10.1.0.0/16".into(), ..Default::default() }])
    }

    fn services(&self) -> Result<Vec<ServiceReport>, InspectFailure> {
        let frontend = |kind: &str, address: Option<&str>| FrontendReport {
            kind: kind.into(),
            address: address.map(Into::into),
            port: 80,
            ..Default::default()
        };
        let endpoint = |name: &str, state: &str| EndpointReport {
            name: name.into(),
            address: "10.1.0.7".into(),
            port: 8080,
            state: state.into(),
            in_use: state == "ready",
            ..Default::default()
        };
        let service = ServiceReport {
            name: "default/web:http".into(),
            frontends: vec![frontend("ClusterIP", Some("10.96.0.1")), frontend("NodePort", None)],
            endpoints: vec![endpoint("web-0", "ready"), endpoint("web-1", "not-ready")],
            ..Default::default()
        };
        Ok(vec![service, ServiceReport { name: "default/none".into(), ..Default::default() }])
    }

    fn neighbours(&self) -> Result<Vec<NeighbourReport>, InspectFailure> {
        std::thread::sleep(Duration::from_millis(600));
        Ok(vec![NeighbourReport { address: "192.0.2.2".into(), ..Default::default() }])
    }

    fn flows(&self, limit: usize) -> Result<FlowsReport, InspectFailure> {
        Ok(FlowsReport { total: 5000, flows: vec![FlowReport::default(); limit] })
    }

    fn connections(&self, query: &ConnectionsQuery, limit: usize) -> Result<ConnectionsReport, InspectFailure> {
        // The filters come back as they arrived.
        let (segment, state) = (query.pod.clone().unwrap_or_default(), query.state.clone().unwrap_or_default());
        let connection = ConnectionReport { segment, state, ..Default::default() };
        Ok(ConnectionsReport { total: 7, connections: vec![connection; limit.min(5)], ..Default::default() })
    }

    fn policies(&self, pod: Option<&str>) -> Result<PoliciesReport, InspectFailure> {
        let pod = pod.map(|pod| PodPolicyReport { pod: pod.to_owned(), ..Default::default() });
        Ok(PoliciesReport { pod, policies: Vec::new() })
    }

    fn policy_diff(&self, request: &PolicyDiffRequest) -> Result<PolicyDiffReport, InspectFailure> {
        // As many flows change as objects came, the first as many as the limit allows are told.
        let changing = request.objects.len();
        let flow = |object: &serde_json::Value| FlowChangeReport {
            protocol: if request.delete { "udp" } else { "tcp" }.into(),
            state: object["metadata"]["name"].as_str().unwrap_or_default().into(),
            ..Default::default()
        };
        let flows = request.objects.iter().take(request.limit.unwrap_or(0)).map(flow).collect();
        Ok(PolicyDiffReport { judged: 9, changing: changing as u64, flows, ..Default::default() })
    }

    fn policy_reach(&self, query: &PolicyReachQuery) -> Result<PolicyReachReport, InspectFailure> {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "all".into());
        let (source, target) = (part(&query.from), part(&query.to));
        let reach = ReachReport { source, target, family: "both".into(), ports: vec!["tcp/80".into(), "icmp".into()] };
        let reach = vec![reach; query.limit.unwrap_or(0).min(2)];
        Ok(PolicyReachReport { pairs: 3, open_pairs: 2, reach, unused_rules: Some(Vec::new()) })
    }

    fn drops(&self) -> Result<Vec<DropReport>, InspectFailure> {
        Err(InspectFailure::Unavailable("worker 1 does not answer".into()))
    }

    fn stations(&self) -> Result<Vec<StationReport>, InspectFailure> {
        Ok(vec![StationReport { mac: "02:00:00:00:00:09".into(), ..Default::default() }])
    }

    fn ipam(&self) -> Result<IpamReport, InspectFailure> {
        Ok(IpamReport { node: "a".into(), ..Default::default() })
    }

    fn check_ipam(&self) -> Result<IpamCheckReport, InspectFailure> {
        // Something is lost as soon as something is attached.
        let finding = FindingReport { subject: "10.1.0.9".into(), ..Default::default() };
        let findings = self.attached.lock().expect("whole").values().map(|_| finding.clone()).collect();
        Ok(IpamCheckReport { node: "a".into(), findings, ..Default::default() })
    }

    fn receipts(&self) -> Result<Vec<ReceiptReport>, InspectFailure> {
        let receipt = |name: &str| ReceiptReport {
            kind: "Service".into(),
            name: name.into(),
            resource_version: "77".into(),
            took_milliseconds: Some(1.5),
            ..Default::default()
        };
        Ok(["default/web", "default/db"].map(receipt).to_vec())
    }

    fn status(&self) -> Result<StatusReport, InspectFailure> {
        Ok(StatusReport { node: "a".into(), ..Default::default() })
    }

    fn support(&self) -> Result<SupportReport, InspectFailure> {
        Err(InspectFailure::Unavailable("this agent has no objects".into()))
    }

    fn trace_frame(&self, request: &TraceFrameRequest) -> Result<TraceReport, InspectFailure> {
        Err(InspectFailure::NotFound(format!("no port {} at this node", request.port)))
    }

    fn begin_capture(&self, request: &CaptureRequest) -> Result<CaptureBegun, InspectFailure> {
        match request.ports.as_slice() {
            [port] if port == "default/web-0" => Ok(CaptureBegun { capture: 7, generation: 3 }),
            _ => Err(InspectFailure::NotFound("no such port at this node".into())),
        }
    }

    fn next_captured(&self, capture: u64) -> Result<CaptureBatch, InspectFailure> {
        if capture != 7 {
            return Err(InspectFailure::NotFound("this capture has ended".into()));
        }
        let frame = |event, port: &str, comment: &str| CapturedReport {
            packet: "0.1".into(),
            time_nanoseconds: 1_000_000_007,
            port: port.into(),
            event,
            comment: comment.into(),
            bytes: "0102030405060708090a0b0c0800".into(),
            length_bytes: 60,
            segment_bytes: None,
            trace: matches!(event, FrameEvent::Arrived).then(TraceReport::default),
            drop_reason: None,
        };
        let frames = vec![
            frame(FrameEvent::Arrived, "default/web-0", "0.1 in: forward to eth1"),
            frame(FrameEvent::Left, "eth1", "0.1 out"),
        ];
        Ok(CaptureBatch { frames, lost: 2, ended: Some("its time is over".into()) })
    }

    fn end_capture(&self, _capture: u64) {}

    fn trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectFailure> {
        match &request.from {
            TraceSource::Pod { namespace, name } if name != "web-0" => {
                Err(InspectFailure::NotFound(format!("no pod {namespace}/{name} on this node")))
            }
            TraceSource::Pod { .. } | TraceSource::Host | TraceSource::Outside { .. } => {
                let packet = format!("{} to {}:{}", request.protocol.text(), request.to_address, request.to_port);
                Ok(TraceReport { packet, ..Default::default() })
            }
        }
    }
}

/// A served socket in a directory of its own; both are gone when it is dropped.
pub(crate) struct TestAgent {
    pub(crate) directory: PathBuf,
    pub(crate) network: Arc<TestNetwork>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A new empty directory.
pub(crate) fn directory() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("millrace-local-api-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

impl TestAgent {
    pub(crate) fn start(limits: Limits) -> TestAgent {
        let directory = directory();
        let network = Arc::new(TestNetwork::default());
        let (attachments, _) = Attachments::load(&directory.join("attachments.json")).expect("no record yet");
        let cni = Arc::new(CniServer::new(network.clone(), Arc::new(attachments)));
        let socket = Socket::bind(&directory.join("agent.sock")).expect("bound");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let inspect = network.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let stopped = async {
                let _ = stopped.await;
            };
            runtime.block_on(serve(socket, cni, inspect, limits, stopped)).expect("served");
        });
        symlink(env!("CARGO_BIN_EXE_millrace"), directory.join("millrace-cni")).expect("a link");
        TestAgent { directory, network, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }

    /// Runs the plugin as a runtime does.
    pub(crate) fn plugin(&self, command: &str, container: &str, timeout_seconds: u64) -> Output {
        let namespace = self.directory.join(format!("namespace-{container}"));
        fs::write(&namespace, "").expect("a file");
        let configuration = serde_json::json!({
            "cniVersion": "1.0.0", "name": "millrace", "type": "millrace-cni",
            "socket": self.socket(), "timeoutSeconds": timeout_seconds, "stateDirectory": self.directory,
        });
        let mut child = Command::new(self.directory.join("millrace-cni"));
        child.env_clear().env("CNI_COMMAND", command).env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        child.env("CNI_NETNS", &namespace).env("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0");
        run(child, configuration.to_string().as_bytes())
    }

    /// Runs `millrace` against this agent.
    pub(crate) fn millrace(&self, arguments: &[&str]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_millrace"));
        child.args(arguments).arg("--socket").arg(self.socket());
        run(child, b"")
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn run(mut child: Command, input: &[u8]) -> Output {
    use std::io::Write;
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("started");
    child.stdin.take().expect("piped").write_all(input).expect("read by the child");
    child.wait_with_output().expect("ended")
}

/// Standard output as JSON.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in {output:?}"))
}

/// The containers in the record of attachments.
pub(crate) fn recorded(directory: &Path) -> Vec<String> {
    let (attachments, problem) = Attachments::load(&directory.join("attachments.json")).expect("readable");
    assert_eq!(problem, None);
    attachments.all().into_iter().map(|attachment| attachment.key.container_id).collect()
}
