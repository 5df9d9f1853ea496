//! The server under test, and a client that knows HTTP and nothing of Kubernetes.
//!
//! `KUBECONFIG` in the environment: the real server it names, by `kubectl proxy`. Else an emulator for each test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_emulator::{Emulator, Options};
use serde_json::{Value, json};

/// The resources that a definition of the test adds: `gadgets` with a status, in the cluster.
pub(crate) const GADGETS: &str = "/apis/test.millrace.dev/v1/gadgets";

/// A server, and a namespace of the test's own on it.
pub(crate) struct Server {
    pub(crate) emulator: Option<Emulator>,
    _proxy: Option<Proxy>,
    authority: String,
    namespace: String,
}

/// The way to a real server; it ends with its test.
struct Proxy(Child);

impl Proxy {
    /// Starts it, if there is a real server; with its address.
    fn start() -> Option<(Proxy, String)> {
        std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty())?;
        let mut command = Command::new("kubectl");
        command.args(["proxy", "--port=0"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("kubectl");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        Some((Proxy(child), address))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub(crate) fn start() -> Server {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (emulator, proxy, authority) = match Proxy::start() {
            Some((proxy, address)) => (None, Some(proxy), address),
            None => {
                let options = Options { bookmark_every: Duration::from_millis(200), ..Options::default() };
                let emulator = Emulator::start(options).expect("emulator");
                let address = emulator.address().to_string();
                (Some(emulator), None, address)
            }
        };
        let server = Server { emulator, _proxy: proxy, authority, namespace };
        let made = server.post("/api/v1/namespaces", json!({"metadata": {"name": server.namespace}}));
        assert_eq!(made.code, 201, "{made:?}");
        server
    }

    /// Whether it is a real server: it cannot be told to forget, and takes its time.
    pub(crate) fn is_real(&self) -> bool {
        self.emulator.is_none()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The collection of config maps of the test.
    pub(crate) fn maps(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    /// Defines gadgets; several tests may.
    pub(crate) fn define_gadgets(&self) {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "gadgets.test.millrace.dev"},
            "spec": {
                "group": "test.millrace.dev", "scope": "Cluster",
                "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }],
            },
        });
        let made = self.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition);
        assert!([201, 409].contains(&made.code), "{made:?}");
        for _ in 0..100 {
            if self.get(GADGETS).code == 200 {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the definition does not take effect");
    }

    /// The name of a gadget of this test.
    pub(crate) fn gadget(&self, word: &str) -> String {
        format!("{}-{word}", self.namespace)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.send("GET", path, None, "application/json")
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Response {
        self.send("POST", path, Some(body), "application/json")
    }

    pub(crate) fn put(&self, path: &str, body: Value) -> Response {
        self.send("PUT", path, Some(body), "application/json")
    }

    pub(crate) fn patch(&self, path: &str, media: &str, body: Value) -> Response {
        self.send("PATCH", path, Some(body), media)
    }

    pub(crate) fn apply(&self, path: &str, body: Value) -> Response {
        self.send("PATCH", path, Some(body), "application/apply-patch+yaml")
    }

    pub(crate) fn delete(&self, path: &str, body: Option<Value>) -> Response {
        self.send("DELETE", path, body, "application/json")
    }

    fn send(&self, method: &str, path: &str, body: Option<Value>, media: &str) -> Response {
        let (code, mut reader) = self.open(method, path, body, media);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("a whole body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Response { code, body }
    }

    /// Starts a watch. Events are waited for no longer than five seconds.
    pub(crate) fn watch(&self, path: &str) -> Events {
        let (code, reader) = self.open("GET", path, None, "application/json");
        Events { code, lines: BufReader::new(reader) }
    }

    fn open(&self, method: &str, path: &str, body: Option<Value>, media: &str) -> (u16, Box<dyn Read>) {
        let mut stream = TcpStream::connect(&self.authority).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let authority = &self.authority;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {authority}\r\naccept: application/json\r\ncontent-type: {media}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .expect("sent");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
        let mut chunked = false;
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a header");
            if line.trim().is_empty() {
                break;
            }
            chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        }
        (code, if chunked { Box::new(Chunked { reader, left: 0, ended: false }) } else { Box::new(reader) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = self.delete(&format!("/api/v1/namespaces/{}", self.namespace), None);
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Response {
    pub(crate) fn version(&self) -> u64 {
        version(&self.body)
    }

    /// Code and reason of a refusal, whose body must be a `Status` that says the same.
    #[track_caller]
    pub(crate) fn refusal(&self) -> (u16, &str) {
        assert_eq!((&self.body["kind"], &self.body["status"]), (&json!("Status"), &json!("Failure")), "{self:?}");
        assert_eq!(self.body["code"], json!(self.code), "{self:?}");
        (self.code, self.body["reason"].as_str().unwrap_or_default())
    }

    #[track_caller]
    pub(crate) fn done(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        self.body
    }

    /// Names of the items.
    pub(crate) fn names(&self) -> Vec<&str> {
        let items = self.body["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["metadata"]["name"].as_str()).filter(|name| *name != "kube-root-ca.crt").collect()
    }
}

/// The version of an object or list.
pub(crate) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).expect("a version")
}

/// The events of a watch.
pub(crate) struct Events {
    pub(crate) code: u16,
    lines: BufReader<Box<dyn Read>>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).expect("an event in time");
        (length > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// The next event but bookmarks, in short: `ADDED a`.
    pub(crate) fn short(&mut self) -> Option<String> {
        loop {
            let event = self.next()?;
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if event["type"] != "BOOKMARK" && name != "kube-root-ca.crt" {
                return Some(format!("{} {name}", event["type"].as_str().expect("a type")));
            }
        }
    }
}

/// The transfer coding of RFC 9112 section 7.1.
struct Chunked<R> {
    reader: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let most = self.left.min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        if self.left == 0 {
            self.reader.read_line(&mut String::new())?;
        }
        Ok(read)
    }
}
