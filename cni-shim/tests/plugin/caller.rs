//! Calls the plugin as a runtime does, and stands in for what listens on the agent's socket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

/// What a call gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit_code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn code(&self) -> Option<u64> {
        self.json()["code"].as_u64()
    }
}

/// Runs the program with these variables only.
pub(crate) fn call(variables: &[(&str, &str)], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_millrace-cni"));
    child.env_clear().envs(variables.iter().copied());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    // A plugin that refuses its environment does not read its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("ended");
    Outcome {
        exit_code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// The variables of a pod, as containerd sends them.
pub(crate) fn pod(command: &str) -> Vec<(&str, &str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1"),
    ]
}

/// A network configuration for the agent at `socket`.
pub(crate) fn configuration(version: &str, socket: &str) -> Value {
    // What a DEL leaves for an absent agent goes beside the sockets.
    let state = std::env::temp_dir().join(format!("millrace-cni-{}.state", std::process::id()));
    json!({
        "cniVersion": version, "name": "millrace", "type": "millrace-cni", "socket": socket, "timeoutSeconds": 2,
        "stateDirectory": state,
    })
}

/// A socket that serves one connection with `serve`.
pub(crate) struct Agent {
    path: PathBuf,
}

impl Agent {
    pub(crate) fn new(serve: impl FnOnce(UnixStream) + Send + 'static) -> Agent {
        let path = unused_path();
        let listener = UnixListener::bind(&path).expect("bound");
        std::thread::spawn(move || serve(listener.accept().expect("a connection").0));
        Agent { path }
    }

    /// An agent that gives this answer, and a channel of the requests it got.
    pub(crate) fn answering(status: u16, body: &Value) -> (Agent, mpsc::Receiver<(String, Value)>) {
        let (sender, receiver) = mpsc::channel();
        let body = body.to_string();
        let agent = Agent::new(move |mut stream| {
            let request = read_request(&stream);
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}").expect("sent");
            let _ = sender.send(request);
        });
        (agent, receiver)
    }

    pub(crate) fn socket(&self) -> &str {
        self.path.to_str().expect("temporary paths are text")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A path nothing is at.
pub(crate) fn unused_path() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("millrace-cni-{}-{number}.sock", std::process::id()))
}

/// Path and body of a request.
pub(crate) fn read_request(stream: &UnixStream) -> (String, Value) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let path = line.split(' ').nth(1).expect("a path").to_owned();
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("a header");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (path, serde_json::from_slice(&body).expect("JSON"))
}
