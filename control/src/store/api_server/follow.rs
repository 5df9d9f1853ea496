//! One kind followed, whatever happens to the streams it comes by.
//!
//! First the present objects: by a streaming list (KEP-3157) or, where the server has none, in pages. Then a watch from
//! that version on. Every event and bookmark moves the version; a stream that breaks is taken up again at it. Only when
//! the server has forgotten the version (410) are the present objects read anew; who listens compares (`watch`).
//!
//! After a failure the next try waits: 0.8 s, doubling to 30 s, give or take half, so that 5,000 agents do not come back
//! in one instant (client-go's reflector has the same bounds).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::received::{List, Received};
use super::{PAGE, in_words};

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(800);
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A stream that lasted so long was no failure.
const LASTING: Duration = Duration::from_secs(5);
/// A server that has streaming lists sends their first event soon; one that has never heard of them sends objects and no
/// end.
const INITIAL_SILENCE: Duration = Duration::from_secs(20);
/// How long the server keeps a stream, in seconds; half as much again at random.
const STREAM_SECONDS: u32 = 300;

/// What is told of a kind.
#[derive(Debug)]
pub(super) enum Told {
    /// All present objects follow, once more or for the first time.
    Begin,
    /// One of the present objects.
    Present(Received),
    /// That were all.
    Complete,
    /// The object is as this.
    Applied(Received),
    /// The object is gone.
    Deleted(Received),
    /// The server answers.
    Well,
    /// The server has no such kind.
    Unknown,
    /// The server does not answer, or not as hoped.
    Trouble {
        /// Whether it concerns the server, not this kind alone.
        server: bool,
        /// What happened.
        message: String,
    },
}

/// Nobody listens any more.
#[derive(Debug)]
pub(super) struct Unheard;

/// Why a stream or list ended before its time.
enum Failure {
    /// The version is forgotten.
    Gone,
    /// The server has no streaming lists.
    NoStreamingLists,
    /// The server has no such kind.
    NoSuchKind,
    /// Anything else.
    Other {
        server: bool,
        message: String,
    },
    Unheard,
}

impl From<Unheard> for Failure {
    fn from(Unheard: Unheard) -> Self {
        Self::Unheard
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Gone,
            kube::Error::Api(status) if status.code == 404 => Self::NoSuchKind,
            kube::Error::Api(status) => {
                let server = status.code == 401 || status.code == 429 || status.code >= 500;
                Self::Other { server, message: format!("{} ({})", status.message, status.code) }
            }
            other => Self::Other { server: true, message: in_words(&other) },
        }
    }
}

/// Follows the objects at `path` until nobody listens. `number` says to the listener which kind it is. `Parts` is what is
/// kept of an object.
pub(super) async fn follow<Parts>(client: Client, path: String, number: usize, told: mpsc::Sender<(usize, Told)>)
where
    Parts: for<'de> Deserialize<'de> + Clone + Into<Received> + Send + 'static,
{
    let mut follower = Follower { client, request: Request::new(path), number, told, version: None, streaming: true };
    let mut failures = 0;
    loop {
        let start = Instant::now();
        let Err(failure) = follower.step::<Parts>().await else {
            failures = 0;
            continue;
        };
        let lasted = start.elapsed() >= LASTING;
        let trouble = match failure {
            Failure::Unheard => return,
            // At once: it is what the server asks for.
            Failure::Gone if follower.version.take().is_some() => continue,
            Failure::NoStreamingLists => {
                follower.streaming = false;
                continue;
            }
            Failure::Gone => {
                Told::Trouble { server: false, message: "the server forgets versions faster than it lists".to_owned() }
            }
            Failure::NoSuchKind => Told::Unknown,
            Failure::Other { server, message } => Told::Trouble { server, message },
        };
        failures = if lasted { 1 } else { failures + 1 };
        // A stream that breaks now and then is not worth a word.
        if failures > 1 || follower.version.is_none() {
            let Ok(()) = follower.tell(trouble).await else { return };
        }
        tokio::time::sleep(wait(failures)).await;
    }
}

/// How long to wait after so many failures in a row.
fn wait(failures: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_WAIT);
    doubled.mul_f64(0.5 + random())
}

/// A number from 0 to 1: the seed of the standard library's hash tables.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    // 53 bits are exact.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let fraction = bits as f64 / (1u64 << 53) as f64;
    fraction
}

struct Follower {
    client: Client,
    request: Request,
    number: usize,
    told: mpsc::Sender<(usize, Told)>,
    /// Everything up to this version is told.
    version: Option<String>,
    streaming: bool,
}

impl Follower {
    async fn tell(&self, told: Told) -> Result<(), Unheard> {
        self.told.send((self.number, told)).await.map_err(|_| Unheard)
    }

    /// One list, or one stream to its end.
    async fn step<Parts>(&mut self) -> Result<(), Failure>
    where
        Parts: for<'de> Deserialize<'de> + Clone + Into<Received> + Send + 'static,
    {
        if self.version.is_none() && !self.streaming {
            self.list::<Parts>().await
        } else {
            self.stream::<Parts>().await
        }
    }

    /// The present objects in pages.
    async fn list<Parts>(&mut self) -> Result<(), Failure>
    where
        Parts: for<'de> Deserialize<'de> + Into<Received>,
    {
        let mut parameters = ListParams { limit: Some(PAGE), ..ListParams::default() };
        let mut begun = false;
        loop {
            let request = self.request.list(&parameters).map_err(kube::Error::BuildRequest)?;
            let page: List<Parts> = self.client.request(request).await?;
            if !begun {
                self.tell(Told::Well).await?;
                self.tell(Told::Begin).await?;
                begun = true;
            }
            let (version, next) = (page.version().map(str::to_owned), page.continues().map(str::to_owned));
            for item in page.items {
                self.tell(Told::Present(item.into())).await?;
            }
            if next.is_none() {
                let message = || "the server sent a list without a version".to_owned();
                self.version = Some(version.ok_or_else(|| Failure::Other { server: false, message: message() })?);
                return Ok(self.tell(Told::Complete).await?);
            }
            parameters.continue_token = next;
        }
    }

    /// The changes behind the version reached; without one the present objects and then the changes.
    async fn stream<Parts>(&mut self) -> Result<(), Failure>
    where
        Parts: for<'de> Deserialize<'de> + Clone + Into<Received> + Send + 'static,
    {
        let mut initial = self.version.is_none();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred seconds")]
        let seconds = (f64::from(STREAM_SECONDS) * (1.0 + random() / 2.0)) as u32;
        let parameters = WatchParams { send_initial_events: initial, ..WatchParams::default().timeout(seconds) };
        let from = self.version.as_deref().unwrap_or_default();
        let request = self.request.watch(&parameters, from).map_err(kube::Error::BuildRequest)?;
        let start = Instant::now();
        let events = match self.client.request_events::<Parts>(request).await {
            // The server says so where the feature is known and off.
            Err(kube::Error::Api(status)) if initial && matches!(status.code, 400 | 422) => {
                return Err(Failure::NoStreamingLists);
            }
            events => events?,
        };
        let mut events = pin!(events);
        self.tell(Told::Well).await?;
        if initial {
            self.tell(Told::Begin).await?;
        }
        let mut seen = 0u64;
        loop {
            let next = if initial {
                let next = tokio::time::timeout(INITIAL_SILENCE, events.try_next()).await;
                next.map_err(|_| Failure::NoStreamingLists)?
            } else {
                events.try_next().await
            };
            let Some(event) = next? else { break };
            seen += 1;
            match event {
                WatchEvent::Added(parts) | WatchEvent::Modified(parts) if initial => {
                    self.tell(Told::Present(parts.into())).await?;
                }
                WatchEvent::Added(parts) | WatchEvent::Modified(parts) => {
                    let received: Received = parts.into();
                    let version = received.version().map(str::to_owned);
                    self.tell(Told::Applied(received)).await?;
                    self.version = version.or(self.version.take());
                }
                WatchEvent::Deleted(parts) => {
                    let received: Received = parts.into();
                    let version = received.version().map(str::to_owned);
                    self.tell(Told::Deleted(received)).await?;
                    if !initial {
                        self.version = version.or(self.version.take());
                    }
                }
                WatchEvent::Bookmark(bookmark) => {
                    if initial && bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") {
                        initial = false;
                        self.tell(Told::Complete).await?;
                    }
                    if !initial {
                        self.version = Some(bookmark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
        // A server that takes streams and drops them must not be asked in a loop.
        if initial || (seen == 0 && start.elapsed() < LASTING) {
            return Err(Failure::Other { server: false, message: "a stream ended before its time".to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_half_a_minute_and_differ() {
        for (failures, doubled) in [(1, 0.8), (2, 1.6), (3, 3.2), (6, 25.6), (7, 30.0), (1000, 30.0)] {
            let waits: Vec<f64> = (0..50).map(|_| wait(failures).as_secs_f64()).collect();
            assert!(waits.iter().all(|wait| (doubled * 0.5..=doubled * 1.5).contains(wait)), "{waits:?}");
            assert!(waits.iter().any(|wait| (wait - waits[0]).abs() > doubled / 100.0), "all agents come back at once");
        }
    }
}
