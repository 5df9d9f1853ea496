//! The store that is an API server of Kubernetes.
//!
//! Reads and writes are single requests; a write is compare-and-swap by the server's own resource versions. A watch is a
//! thread of its own (`watch`) that follows each kind by a stream (`follow`): a streaming list where the server has them,
//! pages where not, then a watch with bookmarks that goes on from the last version whatever broke it. While the server is
//! away nothing is deleted, and when it is back only what differs is told: tables converge, they are not made anew.
//!
//! Of each object only what `observe` reads is kept (`received`): no managed fields, images of nodes, heartbeats. An
//! object whose rest is as before makes no event, so the heartbeats of 5,000 nodes cost their decoding and nothing behind
//! it. Memory: 40 bytes and its name for each object watched, and one page of objects while a list runs.
//!
//! Threads: `store-requests` drives reads and writes, whose callers wait; `store-watch` one a watch. The client speaks
//! HTTP/1.1, so each kind watched holds one connection. Events (`events`) are written the same way.

mod connection;
mod events;
mod follow;
mod received;
mod resource;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel;
use kube::Client;
use kube::api::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use kube::core::Request;
use serde_json::Value;

pub use connection::{Connection, ConnectionError};
use received::{List, Received};
use resource::Resource;

use super::{FieldError, Kind, Located, Object, ObjectKey, ObjectStore, StoreError, Watch};

/// Longest time a caller waits for a single read or write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// A store that speaks to an API server. Cloning shares the connection.
#[derive(Clone)]
pub struct ApiServerStore {
    connection: Connection,
    requests: Arc<Requests>,
}

impl std::fmt::Debug for ApiServerStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ApiServerStore").field("server", &self.connection.server()).finish_non_exhaustive()
    }
}

/// The thread that drives requests; it ends when this is dropped.
struct Requests {
    runtime: tokio::runtime::Handle,
    client: Client,
    _ends: tokio::sync::oneshot::Sender<()>,
}

impl ApiServerStore {
    /// A store at the end of `connection`. Nothing is asked of the server yet: it may be away.
    ///
    /// # Errors
    /// When the connection's certificates or credentials cannot be used, or no thread can be had.
    pub fn open(connection: Connection) -> Result<Self, ConnectionError> {
        let runtime = connection::runtime()?;
        let client = {
            let _inside = runtime.enter();
            connection.client()?
        };
        let handle = runtime.handle().clone();
        let (ends, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("store-requests".into());
        thread
            .spawn(move || runtime.block_on(async { drop(ended.await) }))
            .map_err(|source| ConnectionError::Thread { source })?;
        Ok(Self { connection, requests: Arc::new(Requests { runtime: handle, client, _ends: ends }) })
    }

    /// Runs one request on the thread of requests and waits for its answer.
    fn request<T, F>(&self, act: impl FnOnce(Client) -> F) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, kube::Error>> + Send + 'static,
    {
        let (answer, answered) = channel::bounded(1);
        let asked = act(self.requests.client.clone());
        self.requests.runtime.spawn(async move {
            let _ = answer.send(tokio::time::timeout(PATIENCE, asked).await);
        });
        match answered.recv() {
            Ok(Ok(result)) => result.map_err(Refused::of),
            Ok(Err(_)) => Err(Refused::Away(format!("no answer for {} s", PATIENCE.as_secs()))),
            Err(_) => Err(Refused::Away("the store is closed".to_owned())),
        }
    }

    fn path(&self, key: &ObjectKey) -> Result<Request, StoreError> {
        let resource = Resource::of(&key.kind).ok_or_else(|| unknown(&key.kind))?;
        Ok(Request::new(resource.path(key.namespace.as_deref())))
    }

    /// One object in the words of the trait.
    fn error(&self, key: &ObjectKey, refused: Refused, expected: &str) -> StoreError {
        let boxed = Box::new(key.clone());
        match refused {
            Refused::Missing => StoreError::NotFound { key: boxed },
            Refused::Exists => StoreError::AlreadyExists { key: boxed },
            Refused::Conflict => {
                // The server does not say which version it has.
                let found = match self.get(key) {
                    Ok(Some(object)) => object.resource_version.to_string(),
                    Ok(None) => return StoreError::NotFound { key: boxed },
                    Err(_) => "another one".to_owned(),
                };
                StoreError::Conflict { key: boxed, expected: expected.to_owned(), found }
            }
            Refused::Other { code, message } => StoreError::Refused { what: key.to_string(), code, message },
            Refused::Away(message) => self.away(message),
        }
    }

    fn away(&self, message: String) -> StoreError {
        StoreError::Unreachable { server: self.connection.server().to_owned(), message }
    }
}

/// Why the server did not do as asked.
enum Refused {
    Missing,
    Exists,
    Conflict,
    Other { code: u16, message: String },
    Away(String),
}

impl Refused {
    fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
                // Without a name it is the kind that the server does not know.
                (404, _) if status.details.as_ref().is_some_and(|details| !details.name.is_empty()) => Self::Missing,
                (409, "AlreadyExists") => Self::Exists,
                (409, _) => Self::Conflict,
                (code, _) => Self::Other { code, message: status.message },
            },
            other => Self::Away(in_words(&other)),
        }
    }
}

/// The whole chain of causes: the outermost alone says only that a request failed.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn malformed(message: impl Into<String>) -> StoreError {
    StoreError::Malformed(FieldError { path: String::new(), line: None, message: message.into() })
}

fn unknown(kind: &Kind) -> StoreError {
    malformed(format!("{} {} is no kind this program knows on a server", kind.api_version, kind.kind))
}

/// The object as it is sent, with the version it replaces.
fn body(object: &Value, resource_version: Option<&str>) -> Vec<u8> {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        match resource_version {
            Some(version) => drop(metadata.insert("resourceVersion".to_owned(), version.into())),
            None => drop(metadata.remove("resourceVersion")),
        }
    }
    object.to_string().into_bytes()
}

impl ObjectStore for ApiServerStore {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let request =
            self.path(key)?.get(&key.name, &GetParams::default()).map_err(|error| malformed(error.to_string()))?;
        match self.request(|client| async move { client.request::<Received>(request).await }) {
            Ok(received) => Ok(received.object(&key.kind)),
            Err(Refused::Missing) => Ok(None),
            Err(refused) => Err(self.error(key, refused, "")),
        }
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        let resource = Resource::of(kind).ok_or_else(|| unknown(kind))?;
        let (request, mut objects) = (Request::new(resource.path(None)), Vec::new());
        let mut parameters = ListParams { limit: Some(PAGE), ..ListParams::default() };
        loop {
            let page = request.list(&parameters).map_err(|error| malformed(error.to_string()))?;
            match self.request(|client| async move { client.request::<List>(page).await }) {
                Ok(list) => {
                    parameters.continue_token = list.continues().map(str::to_owned);
                    objects.extend(list.items.into_iter().filter_map(|item| item.object(kind)));
                }
                // Too slow for the server's memory: once more from the start.
                Err(Refused::Other { code: 410, .. }) if parameters.continue_token.take().is_some() => objects.clear(),
                Err(Refused::Other { code, message }) => {
                    return Err(StoreError::Refused { what: resource.plural.to_owned(), code, message });
                }
                Err(Refused::Away(message)) => return Err(self.away(message)),
                Err(_) => return Err(unknown(kind)),
            }
            if parameters.continue_token.is_none() {
                objects.sort_unstable_by(|left, right| left.key.cmp(&right.key));
                return Ok(objects);
            }
        }
    }

    fn create(&self, object: &Value) -> Result<Object, StoreError> {
        let key = ObjectKey::read(&Located::from(object)).map_err(StoreError::Malformed)?;
        let request = self.path(&key)?.create(&PostParams::default(), body(object, None));
        let request = request.map_err(|error| malformed(error.to_string()))?;
        let made = self.request(|client| async move { client.request::<Received>(request).await });
        let made = made.map_err(|refused| self.error(&key, refused, ""))?;
        made.object(&key.kind).ok_or_else(|| malformed("the server answered with something without a name"))
    }

    fn update(&self, object: &Value, resource_version: &str) -> Result<Object, StoreError> {
        let key = ObjectKey::read(&Located::from(object)).map_err(StoreError::Malformed)?;
        let sent = body(object, Some(resource_version));
        let request = self.path(&key)?.replace(&key.name, &PostParams::default(), sent);
        let request = request.map_err(|error| malformed(error.to_string()))?;
        let made = self.request(|client| async move { client.request::<Received>(request).await });
        let made = made.map_err(|refused| self.error(&key, refused, resource_version))?;
        made.object(&key.kind).ok_or_else(|| malformed("the server answered with something without a name"))
    }

    fn update_status(&self, object: &Value, resource_version: &str) -> Result<Object, StoreError> {
        let key = ObjectKey::read(&Located::from(object)).map_err(StoreError::Malformed)?;
        let sent = body(object, Some(resource_version));
        let request = self.path(&key)?.replace_subresource("status", &key.name, &PostParams::default(), sent);
        let request = request.map_err(|error| malformed(error.to_string()))?;
        let made = self.request(|client| async move { client.request::<Received>(request).await });
        let made = made.map_err(|refused| self.error(&key, refused, resource_version))?;
        made.object(&key.kind).ok_or_else(|| malformed("the server answered with something without a name"))
    }

    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError> {
        let preconditions = Preconditions { resource_version: Some(resource_version.to_owned()), uid: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = self.path(key)?.delete(&key.name, &parameters).map_err(|error| malformed(error.to_string()))?;
        let done = self.request(|client| async move { client.request_text(request).await });
        done.map(drop).map_err(|refused| self.error(key, refused, resource_version))
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        watch::start(&self.connection, kinds)
    }
}
