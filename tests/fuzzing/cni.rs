//! What a CNI runtime may hand to the plugin, what may answer the plugin at its socket, and what may ask the agent.
//!
//! The plugin is run whole, by the function that is its program; only its socket and state directory are always those of a
//! directory made for it. The agent's side is the real server of the verbs, on a network that makes nothing.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use millrace_cni::environment::Environment;
use millrace_cni::protocol;
use millrace_cni::spec::Version;
use millrace_control::cni_server::{
    AddRequest, AddResult, Attachment, AttachmentKey, Attachments, CniFailure, CniServer, DeleteRequest, PodAddress,
    PodDevice, PodNetwork, PodRoute,
};
use millrace_engine::packet::{Mac, PortIndex};
use serde_json::{Value, json};

/// A directory for one thread, on a tmpfs, that goes with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        let path = PathBuf::from(format!("/dev/shm/millrace-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory on /dev/shm");
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

thread_local! {
    static PLACE: Place = Place::new();
}

/// Three texts with a zero byte between them: variables of the environment, one in a line; the configuration, or what is
/// asked of the agent; what answers at the socket. Where the last is missing, nobody listens there.
///
/// # Panics
/// If plugin or agent break a promise.
pub fn run(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let (variables, document) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let answer = parts.next();
    PLACE.with(|place| {
        plugin(&place.0, variables, document, answer);
        agent(&place.0, document);
    });
}

fn plugin(place: &Path, variables: &[u8], document: &[u8], answer: Option<&[u8]>) {
    let text = String::from_utf8_lossy(variables);
    let named = text.lines().filter_map(|line| line.split_once('='));
    let environment = Environment::new(named.map(|(name, value)| (OsString::from(name), OsString::from(value))));
    let socket = place.join("agent.sock");
    let listening = answer.map(|answer| Listening::at(&socket, answer));
    let input = redirected(document, &socket, place);
    let (mut stdout, mut log) = (Vec::new(), Vec::new());
    let code = millrace_cni::run(&environment, &mut &input[..], &mut stdout, &mut log);
    drop(listening);
    // The specification: a result or nothing at success, an error document else, on standard output.
    let printed: Option<Value> = (!stdout.is_empty()).then(|| serde_json::from_slice(&stdout).expect("JSON"));
    match code {
        0 => {}
        1 => {
            assert!(printed.is_some_and(|error| error["code"].is_u64() && error["msg"].is_string()), "an error's form")
        }
        other => panic!("exit code {other}"),
    }
    let _ = std::fs::remove_dir_all(millrace_cni::pending::directory(place));
}

/// The configuration with the socket and the state directory of this place, and a short patience.
fn redirected(document: &[u8], socket: &Path, place: &Path) -> Vec<u8> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(document) else {
        // Anything else is refused before a socket or a directory is looked at.
        return document.to_vec();
    };
    fields.insert("socket".to_owned(), json!(socket));
    fields.insert("stateDirectory".to_owned(), json!(place));
    fields.insert("timeoutSeconds".to_owned(), json!(2));
    Value::Object(fields).to_string().into_bytes()
}

/// Somebody at the socket who answers one request, whatever it was.
struct Listening {
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    fn at(socket: &Path, answer: &[u8]) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        let answer = answer.to_vec();
        let thread = std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut asked = [0; 64 << 10];
            let _ = stream.read(&mut asked);
            let _ = stream.write_all(&answer);
        });
        Self { socket: socket.to_owned(), thread: Some(thread) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A plugin that never asked leaves the thread waiting.
        drop(std::os::unix::net::UnixStream::connect(&self.socket));
        self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Makes nothing, and says so in full.
struct Nothing;

impl PodNetwork for Nothing {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        let address = |address: &std::net::IpAddr| PodAddress { address: (*address).into(), gateway: None };
        Ok(AddResult {
            port: PortIndex(16),
            mac: request.mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1])),
            mtu_bytes: 1450,
            addresses: request.addresses.iter().map(address).collect(),
            network: None,
            device: PodDevice::Tap,
            routes: vec![PodRoute { destination: "0.0.0.0/0".parse().expect("a prefix"), gateway: None }],
        })
    }

    fn delete(&self, _: &DeleteRequest) -> Result<(), CniFailure> {
        Ok(())
    }

    fn check(&self, _: &Attachment) -> Result<(), CniFailure> {
        Ok(())
    }

    fn status(&self) -> Result<(), CniFailure> {
        Ok(())
    }

    fn release(&self, _: &AttachmentKey, _: Option<PortIndex>) {}

    fn holders(&self) -> Vec<AttachmentKey> {
        Vec::new()
    }
}

/// Each request that the document may be: what was attached can be checked, and taken away again, and is gone then.
fn agent(place: &Path, document: &[u8]) {
    let asked: Option<protocol::AddRequest> = serde_json::from_slice(document).ok();
    let other: Option<protocol::DeleteRequest> = serde_json::from_slice(document).ok();
    let check: Option<protocol::CheckRequest> = serde_json::from_slice(document).ok();
    let collect: Option<protocol::CollectRequest> = serde_json::from_slice(document).ok();
    if asked.is_none() && other.is_none() && check.is_none() && collect.is_none() {
        return;
    }
    let record = place.join("attachments");
    let _ = std::fs::remove_file(&record);
    let (attachments, problem) = Attachments::load(&record).expect("the record is read");
    assert!(problem.is_none());
    let attachments = Arc::new(attachments);
    let server = CniServer::new(Arc::new(Nothing), Arc::clone(&attachments));
    if let Some(request) = asked {
        let key = (request.container_id.clone(), request.interface.clone(), request.network.clone());
        let added = server.add(request.clone());
        assert_eq!(attachments.all().len(), usize::from(added.is_ok()), "recorded if and only if it was made");
        if let Ok(answer) = added {
            let result = answer.into_result(&request);
            assert_eq!(result.interfaces.len(), 1);
            assert!(server.add(request).is_err(), "an interface that exists is refused");
            let (container_id, interface, network) = key;
            let gone = protocol::DeleteRequest { network, container_id, interface, network_namespace: None };
            server.delete(gone).expect("what was made can be taken away");
            assert!(attachments.all().is_empty());
        }
    }
    let answers = [
        other.map(|request| server.delete(request)),
        check.map(|request| server.check(request)),
        collect.map(|request| server.collect(request)),
    ];
    for failure in answers.into_iter().flatten().filter_map(Result::err) {
        assert!(failure.code() > 0 && failure.to_failure().to_json(Version::NEWEST)["msg"].is_string());
    }
    let _ = std::fs::remove_file(&record);
}

/// Every verb as runtimes call it, with what an agent answers, and the requests of the protocol.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let configuration = json!({
        "cniVersion": "1.1.0", "name": "millrace", "type": "millrace-cni", "dns": {"nameservers": ["10.96.0.10"]},
        "runtimeConfig": {"ips": ["10.1.0.5/32"], "mac": "02:00:00:00:00:07",
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}],
            "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 0, "egressBurst": 0}},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:07", "sandbox": "/proc/1/ns/net"}],
            "ips": [{"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    });
    let added = json!({"mac": "02:00:00:00:00:07", "mtu_bytes": 1450,
        "addresses": [{"address": "10.1.0.5/32", "gateway": "169.254.1.1"}],
        "routes": [{"destination": "0.0.0.0/0", "gateway": null}], "further": []});
    let answered = |status: &str, body: &Value| {
        let body = body.to_string();
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}", body.len())
    };
    let variables = |verb: &str| {
        format!(
            "CNI_COMMAND={verb}\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=/var/run/netns/x\nCNI_PATH=/opt/cni/bin\n\
            CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u;IP=10.1.0.5"
        )
    };
    let mut seeds = Vec::new();
    let mut seed = |name: String, parts: [String; 2], answer: Option<String>| {
        let answer = answer.map(|answer| format!("\0{answer}")).unwrap_or_default();
        seeds.push((name, format!("{}\0{}{answer}", parts[0], parts[1]).into_bytes()));
    };
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let mut configuration = configuration.clone();
            configuration["cniVersion"] = json!(version);
            if verb == "ADD" {
                configuration["prevResult"] = Value::Null;
            }
            let answer = answered("200 OK", if verb == "ADD" { &added } else { &Value::Null });
            seed(format!("{verb}-{version}"), [variables(verb), configuration.to_string()], Some(answer));
        }
        let failure = answered("500 Internal Server Error", &json!({"code": 11, "msg": "later", "details": "x"}));
        seed(format!("{verb}-refused"), [variables(verb), configuration.to_string()], Some(failure));
        seed(format!("{verb}-nobody"), [variables(verb), configuration.to_string()], None);
    }
    let namespace = "/proc/1/ns/mnt";
    let requests = [
        (
            "add",
            json!({"network": "millrace", "container_id": "c1", "interface": "eth0", "network_namespace": namespace,
            "arguments": {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web"}, "addresses": ["10.1.0.5", "fd00::5"],
            "mac": "02:00:00:00:00:07", "port_mappings": [], "bandwidth": {}}),
        ),
        (
            "delete",
            json!({"network": "millrace", "container_id": "c1", "interface": "eth0", "network_namespace": null}),
        ),
        (
            "check",
            json!({"network": "millrace", "container_id": "c1", "interface": "eth0", "network_namespace": namespace,
            "mac": "02:00:00:00:00:07", "addresses": ["10.1.0.5"], "mtu_bytes": 1450}),
        ),
        ("collect", json!({"network": "millrace", "valid": [{"containerID": "c1", "ifname": "eth0"}]})),
    ];
    for (name, request) in requests {
        seed(format!("request-{name}"), [String::new(), request.to_string()], None);
    }
    seeds
}
