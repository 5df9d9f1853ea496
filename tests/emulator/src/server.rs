//! The running server: its sockets, its faults, what a test may do to it and see of it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::access::Rule;
use crate::failure::Failure;
use crate::request::{Parameters, Target};
use crate::storage::Storage;
use crate::watching::{self, Watching};
use crate::{discovery, reading, writing};

/// What a server is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes any. Loopback unless it serves a namespace of its own.
    pub address: SocketAddr,
    /// Whether it has streaming lists (`sendInitialEvents`).
    pub streaming_lists: bool,
    /// Time between bookmarks. A real server takes about a minute.
    pub bookmark_every: Duration,
    /// What a client must present; `None` asks nobody.
    pub token: Option<String>,
    /// What the client with the token may do; `None` means everything.
    pub rules: Option<Vec<Rule>>,
    /// `CustomResourceDefinition` objects it starts with.
    pub definitions: Vec<Value>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            streaming_lists: true,
            bookmark_every: Duration::from_secs(5),
            token: None,
            rules: None,
            definitions: Vec::new(),
        }
    }
}

/// How a fault ends the streams that run.
#[derive(Clone, Debug, PartialEq)]
enum Order {
    /// In the middle of a line, as when a connection breaks.
    Cut,
    /// In order, as when their time is up.
    End,
    /// By an `ERROR` event of this code.
    Error(u16),
}

/// What is the same for all connections.
struct Shared {
    storage: Mutex<Storage>,
    options: Mutex<Options>,
    /// Told at each write: the revision.
    revision: watch::Sender<u64>,
    /// The last order to running streams, with its number.
    order: watch::Sender<(u64, Option<Order>)>,
    /// Codes that the next requests get.
    failing: Mutex<VecDeque<u16>>,
    /// Requests so far, by verb and resource.
    requests: Mutex<BTreeMap<String, usize>>,
    /// Whether it takes connections.
    up: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server; it ends when dropped.
pub struct Emulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Emulator {
    /// Starts a server.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(options: Options) -> std::io::Result<Emulator> {
        let listener = std::net::TcpListener::bind(options.address)?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let mut storage = Storage::new();
        for definition in &options.definitions {
            storage.define(definition);
        }
        let shared = Arc::new(Shared {
            storage: Mutex::new(storage),
            revision: watch::channel(1).0,
            order: watch::channel((0, None)).0,
            failing: Mutex::default(),
            requests: Mutex::default(),
            up: watch::channel(true).0,
            options: Mutex::new(options),
        });
        let (stop, stopped) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("emulator".into())
            .spawn(move || runtime.block_on(serve(serving, listener, address, stopped)))?;
        let emulator = Emulator { shared, address, stop: Some(stop), thread: Some(thread) };
        for namespace in ["default", "kube-system"] {
            let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            emulator.put("/api/v1/namespaces", object);
        }
        let definitions = lock(&emulator.shared.options).definitions.clone();
        for definition in definitions {
            emulator.put("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition);
        }
        Ok(emulator)
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The text of a kubeconfig that leads here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let token = lock(&self.shared.options).token.clone();
        let user = token.map_or_else(|| "{}".to_owned(), |token| format!("{{token: {token:?}}}"));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: emulator\nclusters:\n- name: emulator\n  cluster: {{server: '{}'}}\n\
             users:\n- name: emulator\n  user: {user}\ncontexts:\n- name: emulator\n  context: {{cluster: emulator, user: emulator}}\n",
            self.url()
        )
    }

    /// Creates an object, or replaces it whatever its version, at the path of its collection. Without a socket: for
    /// generated clusters.
    ///
    /// # Panics
    /// When the object is refused: the test is wrong.
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut storage = lock(&self.shared.storage);
        let mut target = Target::of(collection, &storage).unwrap_or_else(|failure| panic!("{collection}: {failure:?}"));
        let parameters = Parameters::default();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (target.namespace.clone(), name.clone());
        let written = match storage.get(&target.resource, &key) {
            None => writing::create(&mut storage, &target, &parameters, object.clone()).and_then(|written| {
                // Also what a client would write by the path of the status.
                target.status = target.resource.status && target.resource.custom && !object["status"].is_null();
                target.name = name;
                let version = storage.get(&target.resource, &key).map(|stored| stored.version.to_string());
                object["metadata"]["resourceVersion"] = version.into();
                if target.status { writing::update(&mut storage, &target, &parameters, object) } else { Ok(written) }
            }),
            Some(stored) => {
                object["metadata"]["uid"] = stored.value()["metadata"]["uid"].clone();
                object["metadata"]["creationTimestamp"] = stored.value()["metadata"]["creationTimestamp"].clone();
                storage.put(&target.resource, &key, &mut object);
                Ok((200, Vec::new()))
            }
        };
        written.unwrap_or_else(|failure| panic!("{collection}: {failure:?}"));
        self.shared.revision.send_replace(storage.revision());
    }

    /// Removes an object at once, whatever holds it up.
    pub fn remove(&self, collection: &str, name: &str) {
        let mut storage = lock(&self.shared.storage);
        if let Ok(target) = Target::of(collection, &storage) {
            storage.remove(&target.resource, &(target.namespace, name.to_owned()));
        }
        self.shared.revision.send_replace(storage.revision());
    }

    /// All objects of a collection as they are now.
    ///
    /// # Panics
    /// When there is no such collection: the test is wrong.
    #[must_use]
    pub fn list(&self, collection: &str) -> Vec<Value> {
        let storage = lock(&self.shared.storage);
        let target = Target::of(collection, &storage).unwrap_or_else(|failure| panic!("{collection}: {failure:?}"));
        let (resource, place) = (&target.resource, (target.namespace.as_str(), None));
        let all = storage.page(resource, storage.revision(), place, usize::MAX, |_| true);
        let all = all.unwrap_or_else(|failure| panic!("{collection}: {failure:?}"));
        all.iter().map(|(_, stored)| stored.whole(resource)).collect()
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        lock(&self.shared.storage).revision()
    }

    /// Goes away: connections break and new ones are refused.
    pub fn go_away(&self) {
        self.shared.up.send_replace(false);
    }

    /// Comes back, at the same address.
    pub fn come_back(&self) {
        self.shared.up.send_replace(true);
    }

    /// Forgets all changes so far: continuing from any version before now is answered by 410.
    pub fn forget(&self) {
        lock(&self.shared.storage).forget();
    }

    /// Breaks every running watch in the middle of a line.
    pub fn cut_watches(&self) {
        self.order(Order::Cut);
    }

    /// Ends every running watch in order.
    pub fn end_watches(&self) {
        self.order(Order::End);
    }

    /// Sends every running watch an `ERROR` event of this code, and ends it.
    pub fn fail_watches(&self, code: u16) {
        self.order(Order::Error(code));
    }

    fn order(&self, order: Order) {
        self.shared.order.send_modify(|(number, last)| {
            *number += 1;
            *last = Some(order);
        });
    }

    /// Answers the next requests by these codes, e.g. 429, 500.
    pub fn fail_next(&self, codes: impl IntoIterator<Item = u16>) {
        lock(&self.shared.failing).extend(codes);
    }

    /// Changes what the server is like for requests from now on; its address stays.
    pub fn change(&self, change: impl FnOnce(&mut Options)) {
        change(&mut lock(&self.shared.options));
    }

    /// Requests so far by verb and resource, e.g. `list pods`, `watch nodes`; those answered by a failure too.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes connections while the server is up.
async fn serve(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    mut stopped: mpsc::Receiver<()>,
) {
    let mut up = shared.up.subscribe();
    let mut listener = TcpListener::from_std(listener).ok();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = stopped.recv() => return,
            Ok(()) = up.changed() => {
                if *up.borrow_and_update() {
                    listener = bind(address).await;
                } else {
                    // The listener first: what is cut must not come back.
                    listener = None;
                    connections.abort_all();
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = accept => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..200 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return Some(listener);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

fn full(code: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    if code == 429 {
        response.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    }
    response
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    Ok(respond(&shared, request).await.unwrap_or_else(|failure| full(failure.code, failure.body().to_string())))
}

async fn respond(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Failure> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if ["/healthz", "/livez", "/readyz"].contains(&path) {
        return Ok(full(200, "ok"));
    }
    let options = lock(&shared.options).clone();
    if let Some(token) = &options.token {
        let given = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.filter(|given| *given == format!("Bearer {token}")).ok_or_else(Failure::unauthorized)?;
    }
    if parts.method == Method::GET
        && let Some(found) = discovery::answer(&lock(&shared.storage), path)
    {
        return Ok(full(200, found.to_string()));
    }
    let body = body.collect().await.map_err(|error| Failure::bad_request(error.to_string()))?.to_bytes();
    let parameters = Parameters::of(&parts.uri);
    let mut storage = lock(&shared.storage);
    let target = Target::of(path, &storage)?;
    let verb = verb(&parts.method, &target, &parameters)?;
    *lock(&shared.requests).entry(format!("{verb} {}", target.resource.plural)).or_default() += 1;
    if let Some(code) = lock(&shared.failing).pop_front() {
        return Err(Failure::ordered(code));
    }
    if let Some(rules) = &options.rules
        && !rules.iter().any(|rule| rule.allows(&target.resource, target.status, verb))
    {
        return Err(Failure::forbidden(&target.resource, verb, &target.name));
    }
    let content = || parse(&body);
    let (code, body) = match verb {
        "get" => (200, reading::get(&storage, &target)?),
        "list" => (200, reading::list(&storage, &target, &parameters)?),
        "watch" => {
            let watching = Watching::of(target, &parameters, options.streaming_lists)?;
            drop(storage);
            return Ok(stream(shared, watching, options.bookmark_every));
        }
        "create" => writing::create(&mut storage, &target, &parameters, content()?)?,
        "update" => writing::update(&mut storage, &target, &parameters, content()?)?,
        "patch" => {
            let media = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let media = media.split(';').next().unwrap_or_default().trim();
            writing::patch(&mut storage, &target, &parameters, media, &content()?)?
        }
        "delete" => writing::delete(&mut storage, &target, &parameters, &content().unwrap_or_default())?,
        _ => writing::delete_collection(&mut storage, &target, &parameters, &content().unwrap_or_default())?,
    };
    shared.revision.send_replace(storage.revision());
    Ok(full(code, body))
}

/// Bodies are JSON, or YAML from who applies.
fn parse(body: &Bytes) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body).map_err(|error| Failure::bad_request(error.to_string()))?;
    let json = serde_json::from_str(text);
    json.or_else(|_| serde_saphyr::from_str(text)).map_err(|error| Failure::bad_request(error.to_string()))
}

fn verb(method: &Method, target: &Target, parameters: &Parameters) -> Result<&'static str, Failure> {
    let collection = target.name.is_empty();
    Ok(match *method {
        Method::GET if parameters.flag("watch") => "watch",
        Method::GET if collection => "list",
        Method::GET => "get",
        Method::POST if collection => "create",
        Method::PUT if !collection => "update",
        Method::PATCH if !collection => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => {
            return Err(Failure::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ));
        }
    })
}

/// A body that is fed from a task.
struct Lines(mpsc::Receiver<Result<Bytes, std::io::Error>>);

impl Body for Lines {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|next| next.map(|line| line.map(Frame::data)))
    }
}

fn stream(shared: &Arc<Shared>, watching: Watching, bookmark_every: Duration) -> Answer {
    let (lines, body) = mpsc::channel(64);
    tokio::spawn(follow(Arc::clone(shared), watching, bookmark_every, lines));
    let mut response = Response::new(Lines(body).boxed());
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Feeds a watch until its time is up, its client is gone, or a test says so.
async fn follow(
    shared: Arc<Shared>,
    mut watching: Watching,
    bookmark_every: Duration,
    lines: mpsc::Sender<Result<Bytes, std::io::Error>>,
) {
    let (mut revision, mut orders) = (shared.revision.subscribe(), shared.order.subscribe());
    orders.mark_unchanged();
    let end = tokio::time::sleep(watching.longest);
    let mut bookmarks = tokio::time::interval(bookmark_every);
    bookmarks.reset();
    tokio::pin!(end);
    loop {
        revision.mark_unchanged();
        let (events, ends) = watching.advance(&lock(&shared.storage));
        for line in events {
            if lines.send(Ok(line)).await.is_err() {
                return;
            }
        }
        if ends {
            return;
        }
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            _ = bookmarks.tick() => if watching.bookmarks {
                let _ = lines.send(Ok(watching.bookmark(false))).await;
            },
            () = &mut end => return,
            () = lines.closed() => return,
            _ = orders.changed() => {
                let order = orders.borrow_and_update().1.clone();
                let last = match order {
                    None | Some(Order::End) => return,
                    Some(Order::Error(code)) => Ok(watching::error(&Failure::ordered(code))),
                    Some(Order::Cut) => {
                        let _ = lines.send(Ok(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"No"))).await;
                        // Lets the half line leave first.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        Err(std::io::Error::other("cut"))
                    }
                };
                let _ = lines.send(last).await;
                return;
            }
        }
    }
}
