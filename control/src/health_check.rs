//! What load balancers ask of a node: has this Service an endpoint here (`healthCheckNodePort`), and does this node serve
//! Services at all (`/healthz` and `/livez` of kube-proxy, port 10256, and `/readyz`).
//!
//! HTTP on the node's addresses, answered as kube-proxy's `pkg/proxy/healthcheck/service_health.go` does: 200 while a
//! ready endpoint is on this node and the tables follow the objects, else 503. `/healthz` as its `proxy_health.go` does: 200
//! while the tables follow the objects, and it wants the node to stay (KEP-3836), so that load balancers leave one that is
//! about to go while its connections live. `/livez` is 200 while the agent moves ([`Heartbeat`]): what a restart mends. Objects
//! that cannot be put into force are not: a restart would lose the tables that can. One thread, apart from everything else:
//! a slow or hostile client of one port takes one of [`CLIENTS`] places for at most [`PATIENCE`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle as Task;

use crate::plain_http::{self, NOT_FOUND};
use crate::plan::{Owner, ServicesPlan};

/// Clients served at once, all ports together; further ones wait in the kernel's queue.
const CLIENTS: usize = 64;
/// Longest time a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time after which a port that could not be had is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Without a beat for so long the agent hangs: settling a cluster of 5,000 nodes takes some 4 s.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Sign of life of who keeps tables and workers in step.
#[derive(Debug)]
pub struct Heartbeat {
    started: Instant,
    last_milliseconds: AtomicU64,
    /// Generation of tables that all workers must decide by before the next beat.
    awaited: AtomicU64,
}

impl Default for Heartbeat {
    /// One that beats now.
    fn default() -> Self {
        Self { started: Instant::now(), last_milliseconds: AtomicU64::new(0), awaited: AtomicU64::new(0) }
    }
}

impl Heartbeat {
    fn beat(&self) {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_milliseconds.store(since, Ordering::Relaxed);
    }

    /// Beats if workers have taken up the tables that were published when it last beat; those of `published` are waited for from
    /// now on. Compared with the newest alone, an agent that publishes all the time would seem to hang.
    pub fn beat_with(&self, in_use: u64, published: u64) {
        if in_use >= self.awaited.load(Ordering::Relaxed) {
            self.awaited.store(published, Ordering::Relaxed);
            self.beat();
        }
    }

    fn is_alive_at(&self, now: Instant) -> bool {
        let last = Duration::from_millis(self.last_milliseconds.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started).saturating_sub(last) < LONGEST_SILENCE
    }
}

/// What one port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    namespace: String,
    name: String,
    local_endpoints: usize,
}

/// What all ports answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Checks {
    by_address: BTreeMap<SocketAddr, Check>,
    /// Where the node as a whole is asked for.
    proxy: Option<SocketAddr>,
    condition: Condition,
}

/// How the node serves Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Whether the tables follow the objects.
    pub healthy: bool,
    /// Whether the node is about to go.
    pub leaving: bool,
    /// When the tables were last brought into step.
    pub updated: Timestamp,
}

impl Checks {
    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.by_address.keys().copied().chain(self.proxy)
    }
}

/// The server; ends when it is dropped.
#[derive(Debug)]
pub struct HealthChecks {
    proxy: Option<SocketAddr>,
    wanted: Option<watch::Sender<Arc<Checks>>>,
    thread: Option<JoinHandle<()>>,
}

impl HealthChecks {
    /// Answers at `proxy` that nothing is served yet, and nowhere else; that the agent lives, while `heartbeat` beats. `report`
    /// is told of all ports that cannot be had, each time that these are others.
    ///
    /// # Errors
    /// The kernel refused a thread.
    pub fn start(
        proxy: Option<SocketAddr>,
        heartbeat: Arc<Heartbeat>,
        report: impl Fn(Vec<String>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wanted, follow) = watch::channel(Arc::new(Checks { proxy, ..Checks::default() }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("health-check".into());
        let thread = thread.spawn(move || runtime.block_on(serve(follow, heartbeat, report)))?;
        Ok(Self { proxy, wanted: Some(wanted), thread: Some(thread) })
    }

    /// Answers as `plan` and `condition` have it from now on.
    pub fn follow(&self, plan: &ServicesPlan, condition: Condition) {
        let mut checks = Checks { by_address: BTreeMap::new(), proxy: self.proxy, condition };
        for (owner, service) in plan.owners.iter() {
            let (Owner::Service(name), Some(check)) = (owner, service.health_check) else { continue };
            for address in &plan.node_addresses {
                let check_of = || Check {
                    namespace: name.namespace().to_string(),
                    name: name.name().to_owned(),
                    local_endpoints: check.local_ready(address),
                };
                // Of two Services with one port the first by name has it.
                checks.by_address.entry(SocketAddr::new(*address, check.port)).or_insert_with(check_of);
            }
        }
        if let Some(wanted) = &self.wanted {
            wanted.send_if_modified(|known| {
                let differs = **known != checks;
                if differs {
                    *known = Arc::new(checks);
                }
                differs
            });
        }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        drop(self.wanted.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps a listener for each wanted address, until nobody wants any more.
async fn serve(mut follow: watch::Receiver<Arc<Checks>>, heartbeat: Arc<Heartbeat>, report: impl Fn(Vec<String>)) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut listening: BTreeMap<SocketAddr, Task<()>> = BTreeMap::new();
    let mut failed: BTreeMap<SocketAddr, String> = BTreeMap::new();
    let mut told = failed.clone();
    loop {
        let wanted = Arc::clone(&follow.borrow_and_update());
        listening.retain(|address, task| {
            let stays = wanted.addresses().any(|known| known == *address);
            if !stays {
                task.abort();
            }
            stays
        });
        failed.retain(|address, _| wanted.addresses().any(|known| known == *address));
        for address in wanted.addresses() {
            if listening.contains_key(&address) {
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    failed.remove(&address);
                    let task = listen(listener, address, (follow.clone(), Arc::clone(&heartbeat)), Arc::clone(&places));
                    listening.insert(address, tokio::spawn(task));
                }
                Err(error) => {
                    failed.insert(address, format!("health checks at {address} cannot be served: {error}"));
                }
            }
        }
        if told != failed {
            report(failed.values().cloned().collect());
            told.clone_from(&failed);
        }
        let again =
            async { if failed.is_empty() { std::future::pending().await } else { tokio::time::sleep(AGAIN).await } };
        tokio::select! {
            changed = follow.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    (follow, heartbeat): (watch::Receiver<Arc<Checks>>, Arc<Heartbeat>),
    places: Arc<Semaphore>,
) {
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, mostly: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let checks = Arc::clone(&follow.borrow());
        let alive = heartbeat.is_alive_at(Instant::now());
        tokio::spawn(async move {
            // A client that goes away or is too slow gets no answer, and nobody misses it.
            let _ = tokio::time::timeout(PATIENCE, talk(client, (&checks, alive), address)).await;
            drop(place);
        });
    }
}

/// Reads one request, answers it and closes.
async fn talk(mut client: TcpStream, (checks, alive): (&Checks, bool), address: SocketAddr) -> std::io::Result<()> {
    let Some(path) = plain_http::asked_for(&mut client).await? else { return Ok(()) };
    let text = if checks.proxy == Some(address) {
        answer_for_node(&checks.condition, alive, &path, now())
    } else {
        answer(checks, address)
    };
    plain_http::answer(client, &text).await
}

/// The wall clock's time; it is shown only.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since.as_secs() as i64, since.subsec_nanos() as i32).unwrap_or_default()
}

fn answer_for_node(condition: &Condition, alive: bool, path: &str, now: Timestamp) -> String {
    let eligible = !condition.leaving;
    let (serves, more) = match path {
        "/healthz" => (alive && condition.healthy && eligible, format!(", \"nodeEligible\": {eligible}")),
        "/livez" => (alive, String::new()),
        // kube-proxy has no such path; who rolls a node out asks whether its agent serves what the objects say.
        "/readyz" => (alive && condition.healthy, String::new()),
        _ => return NOT_FOUND.to_owned(),
    };
    // Of a healthy node it is now, whenever anything changed, as kube-proxy has it.
    let updated = if serves { now } else { condition.updated };
    let body = format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{more}}}");
    let status = if serves { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn answer(checks: &Checks, address: SocketAddr) -> String {
    let Some(check) = checks.by_address.get(&address) else {
        return NOT_FOUND.to_owned();
    };
    let healthy = checks.condition.healthy;
    let serves = check.local_endpoints > 0 && healthy;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {},\n\t\
         \"serviceProxyHealthy\": {}\n}}",
        check.namespace, check.name, check.local_endpoints, healthy
    );
    let status = if serves { "200 OK" } else { "503 Service Unavailable" };
    let mut text =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n");
    // A string takes everything.
    let _ = write!(
        text,
        "X-Load-Balancing-Endpoint-Weight: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        check.local_endpoints,
        body.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Mutex;

    use super::*;
    use crate::cluster::ServiceName;
    use crate::plan::{HealthCheck, ServicePlan};

    fn plan(port: u16, local_ready: usize) -> ServicesPlan {
        // Endpoints of the other family do not serve who asks here.
        let check = HealthCheck { port, local_ready_ipv4: local_ready, local_ready_ipv6: 7 };
        let service = ServicePlan { health_check: Some(check), ..ServicePlan::default() };
        let owner = Owner::Service(ServiceName::new("shop", "web").expect("name"));
        ServicesPlan {
            owners: Arc::new(BTreeMap::from([(owner, Arc::new(service))])),
            node_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            ..ServicesPlan::default()
        }
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("address").port()
    }

    const HEALTHY: Condition = Condition { healthy: true, leaving: false, updated: Timestamp::UNIX_EPOCH };
    const BEHIND: Condition = Condition { healthy: false, ..HEALTHY };
    const LEAVING: Condition = Condition { leaving: true, ..HEALTHY };

    /// The answer, or nothing where nobody listens.
    fn ask(port: u16) -> Option<String> {
        ask_for(port, "/")
    }

    fn ask_for(port: u16, path: &str) -> Option<String> {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        client.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Asks until the answer is as wished.
    fn until(port: u16, wished: impl Fn(&Option<String>) -> bool) {
        let answers = (0..500).map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            ask(port)
        });
        let mut last = None;
        for answer in answers {
            if wished(&answer) {
                return;
            }
            last = answer;
        }
        panic!("never as wished, last {last:?}");
    }

    /// kube-proxy's two: a node that is about to go still lives, but wants no new connections.
    #[test]
    fn the_node_is_asked_for_as_kube_proxy_is() {
        let port = free_port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let heartbeat = Arc::new(Heartbeat::default());
        let server = HealthChecks::start(Some(address), heartbeat, |problems| panic!("{problems:?}")).expect("server");
        let is = |path: &'static str, status: &'static str| {
            move |_: &Option<String>| {
                ask_for(port, path).is_some_and(|answer| answer.starts_with(&format!("HTTP/1.1 {status}")))
            }
        };
        until(port, is("/healthz", "503"));
        for (condition, healthz, readyz) in [(HEALTHY, "200", "200"), (LEAVING, "503", "200"), (BEHIND, "503", "503")] {
            server.follow(&ServicesPlan::default(), condition);
            until(port, is("/healthz", healthz));
            until(port, is("/readyz?verbose", readyz));
            until(port, is("/livez", "200"));
        }
        until(port, is("/", "404"));
        let now = Timestamp::from_second(100).expect("a time");
        let body = |path: &str, condition: &Condition| {
            let answer = answer_for_node(condition, true, path, now);
            answer.split("\r\n\r\n").nth(1).expect("a body").to_owned()
        };
        let (then, at) = ("1970-01-01T00:00:00Z", "1970-01-01T00:01:40Z");
        let expected = format!(r#"{{"lastUpdated": "{at}","currentTime": "{at}", "nodeEligible": true}}"#);
        assert_eq!(body("/healthz", &HEALTHY), expected);
        let expected = format!(r#"{{"lastUpdated": "{then}","currentTime": "{at}", "nodeEligible": false}}"#);
        assert_eq!(body("/healthz", &LEAVING), expected);
        assert_eq!(body("/livez", &LEAVING), format!(r#"{{"lastUpdated": "{at}","currentTime": "{at}"}}"#));
        for path in ["/healthz", "/livez", "/readyz"] {
            let answer = answer_for_node(&HEALTHY, false, path, now);
            assert!(answer.starts_with("HTTP/1.1 503"), "{path} of an agent that hangs: {answer}");
        }
    }

    #[test]
    fn without_a_beat_for_half_a_minute_an_agent_hangs() {
        let heartbeat = Heartbeat::default();
        let at = |seconds| heartbeat.started + Duration::from_secs(seconds);
        assert!(heartbeat.is_alive_at(at(29)) && !heartbeat.is_alive_at(at(31)));
        heartbeat.last_milliseconds.store(10_000, Ordering::Relaxed);
        assert!(heartbeat.is_alive_at(at(39)) && !heartbeat.is_alive_at(at(41)));
    }

    #[test]
    fn workers_that_follow_a_stream_of_tables_live_and_one_that_stands_still_does_not() {
        let heartbeat = Heartbeat::default();
        let beats = |in_use, published| {
            heartbeat.last_milliseconds.store(u64::MAX, Ordering::Relaxed);
            heartbeat.beat_with(in_use, published);
            heartbeat.last_milliseconds.load(Ordering::Relaxed) != u64::MAX
        };
        assert!(beats(0, 0), "nothing is published yet");
        for generation in 1..10 {
            assert!(beats(generation - 1, generation), "the newest is not taken up yet, the one before is");
        }
        assert!(!beats(8, 10) && !beats(8, 11), "a worker stands still");
        assert!(beats(11, 12));
    }

    #[test]
    fn answers_follow_the_plan_as_kube_proxys_do() {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&reports);
        let server = HealthChecks::start(None, Arc::default(), move |text| told.lock().expect("whole").push(text))
            .expect("server");
        let port = free_port();
        server.follow(&plan(port, 2), HEALTHY);
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\
                    \"serviceProxyHealthy\": true\n}";
        let says = |status: &'static str, body: String| {
            move |answer: &Option<String>| {
                let answer = answer.as_deref().unwrap_or_default();
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with(&format!("\r\n\r\n{body}"))
            }
        };
        until(port, says("200 OK", body.to_owned()));
        server.follow(&plan(port, 0), HEALTHY);
        until(port, says("503 Service Unavailable", body.replace(": 2", ": 0")));
        server.follow(&plan(port, 2), BEHIND);
        until(port, says("503 Service Unavailable", body.replace("true", "false")));
        server.follow(&ServicesPlan::default(), HEALTHY);
        until(port, Option::is_none);
        // A port that somebody else has is told once, and once more when it is to be had.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        server.follow(&plan(taken.local_addr().expect("address").port(), 1), HEALTHY);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while reports.lock().expect("whole").is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(taken);
        let deadline = deadline + 2 * AGAIN;
        while reports.lock().expect("whole").len() < 2 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let reports = reports.lock().expect("whole");
        assert!(reports[0].len() == 1 && reports[0][0].contains("cannot be served"), "{reports:?}");
        assert!(reports.len() == 2 && reports[1].is_empty(), "{reports:?}");
    }
}
