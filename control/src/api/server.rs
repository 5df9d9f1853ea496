//! The routes, and the bounds on what a request may ask: 1 MiB of body, 95 seconds, 64 CNI calls at a time.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use millrace_cni::protocol;
use millrace_cni::spec::{Failure, code};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::connections::BoundedListener;
use super::model::{ConnectionsQuery, ErrorReport, PolicyDiffRequest, PolicyReachQuery, TraceRequest};
use super::socket::Socket;
use super::{Inspect, InspectFailure};
use crate::cni_server::{CniFailure, CniServer};

/// Bounds of the API.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest body of a request.
    pub body_bytes: usize,
    /// Time for reading a request and answering it. Longer than the plugin waits (at most 90 seconds), so that the
    /// plugin's own words reach the runtime.
    pub request_time: Duration,
    /// Life of a connection.
    pub connection_time: Duration,
    /// Connections open at a time.
    pub connections: usize,
    /// CNI calls at work at a time: each has a blocking thread.
    pub cni_calls: usize,
    /// Flows, connections and pairs of pods told when no limit is asked for.
    pub flows: usize,
    /// Time for requests at work to finish once the agent stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            request_time: Duration::from_secs(95),
            connection_time: Duration::from_secs(120),
            connections: 256,
            cni_calls: 64,
            flows: 1_000,
            grace: Duration::from_secs(10),
        }
    }
}

/// Lets calls in, or makes them wait in the socket's queue; clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    /// One for each CNI call that may be at work.
    calls: Arc<Semaphore>,
    count: usize,
}

impl Gate {
    /// An open gate before a server with these bounds.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            open: watch::Sender::new(true),
            calls: Arc::new(Semaphore::new(limits.cni_calls)),
            count: limits.cni_calls,
        }
    }

    /// Accepts no connection any more, and waits until no CNI call is at work; false, and the gate stays open, if they are not
    /// done in time. Blocks; not for a runtime's threads.
    #[must_use]
    pub fn close(&self, patience: Duration) -> bool {
        /// Between accepting a connection and taking its request up.
        const UNDER_WAY: Duration = Duration::from_millis(20);
        self.open.send_replace(false);
        std::thread::sleep(UNDER_WAY);
        let end = Instant::now() + patience;
        while self.calls.available_permits() < self.count {
            if Instant::now() > end {
                self.open();
                return false;
            }
            std::thread::sleep(UNDER_WAY);
        }
        true
    }

    /// Accepts connections again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

/// What the routes work on.
#[derive(Clone)]
struct Api {
    cni: Arc<CniServer>,
    cni_slots: Arc<Semaphore>,
    inspect: Arc<dyn Inspect>,
    limits: Limits,
}

/// Serves the API on `socket` until `shutdown` is done, then lets requests that are at work finish, for a while.
/// Needs a tokio runtime with time and I/O.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub async fn serve(
    socket: Socket,
    cni: Arc<CniServer>,
    inspect: Arc<dyn Inspect>,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_behind(&Gate::new(&limits), socket, cni, inspect, limits, shutdown).await
}

/// As [`serve`], as long as the gate is open.
///
/// # Errors
/// As [`serve`].
pub async fn serve_behind(
    gate: &Gate,
    socket: Socket,
    cni: Arc<CniServer>,
    inspect: Arc<dyn Inspect>,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (listener, _file) = socket.into_listener()?;
    let listener = BoundedListener::new(listener, limits.connections, limits.connection_time, gate.open.subscribe());
    let api = Api { cni, cni_slots: Arc::clone(&gate.calls), inspect, limits };
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router(api)).with_graceful_shutdown(async move {
        shutdown.await;
        drop(stopping);
    });
    tokio::select! {
        outcome = server => outcome,
        () = async { let _ = stopped.await; tokio::time::sleep(limits.grace).await; } => Ok(()),
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route(protocol::ADD_PATH, post(cni_add))
        .route(protocol::DELETE_PATH, post(cni_delete))
        .route(protocol::CHECK_PATH, post(cni_check))
        .route(protocol::COLLECT_PATH, post(cni_collect))
        .route(protocol::STATUS_PATH, post(cni_status))
        .route("/v1/show/ports", get(async |State(api): State<Api>| tell(api, |inspect| inspect.ports()).await))
        .route("/v1/show/workers", get(async |State(api): State<Api>| tell(api, |inspect| inspect.workers()).await))
        .route("/v1/show/services", get(async |State(api): State<Api>| tell(api, |inspect| inspect.services()).await))
        .route("/v1/show/routes", get(async |State(api): State<Api>| tell(api, |inspect| inspect.routes()).await))
        .route(
            "/v1/show/neighbours",
            get(async |State(api): State<Api>| tell(api, |inspect| inspect.neighbours()).await),
        )
        .route("/v1/show/fdb", get(async |State(api): State<Api>| tell(api, |inspect| inspect.stations()).await))
        .route("/v1/show/ipam", get(async |State(api): State<Api>| tell(api, |inspect| inspect.ipam()).await))
        .route("/v1/check/ipam", get(async |State(api): State<Api>| tell(api, |inspect| inspect.check_ipam()).await))
        .route("/v1/show/drops", get(async |State(api): State<Api>| tell(api, |inspect| inspect.drops()).await))
        .route("/v1/show/receipts", get(async |State(api): State<Api>| tell(api, |inspect| inspect.receipts()).await))
        .route("/v1/show/status", get(async |State(api): State<Api>| tell(api, |inspect| inspect.status()).await))
        .route("/v1/show/flows", get(show_flows))
        .route("/v1/show/connections", get(show_connections))
        .route("/v1/show/policies", get(show_policies))
        .route("/v1/policy/diff", post(policy_diff))
        .route("/v1/policy/reach", get(policy_reach))
        .route("/v1/trace", post(trace))
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path; this agent may be older than the caller"))
        .layer(DefaultBodyLimit::max(api.limits.body_bytes))
        .layer(from_fn_with_state(api.clone(), limit_time))
        .with_state(api)
}

/// What a blocking call began goes on after its time; the container's next call waits for it.
async fn limit_time(State(api): State<Api>, request: Request, next: Next) -> Response {
    let is_cni = request.uri().path().starts_with("/v1/cni/");
    match tokio::time::timeout(api.limits.request_time, next.run(request)).await {
        Ok(response) => response,
        Err(_) if is_cni => cni_failure(&Failure::new(code::TRY_AGAIN_LATER, "the agent did not finish in time")),
        Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "the agent did not finish in time"),
    }
}

async fn cni_add(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    cni_call(api, body, |cni, request| cni.add(request)).await
}

async fn cni_delete(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    cni_call(api, body, |cni, request| cni.delete(request)).await
}

async fn cni_check(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    cni_call(api, body, |cni, request| cni.check(request)).await
}

async fn cni_collect(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    cni_call(api, body, |cni, request| cni.collect(request)).await
}

async fn cni_status(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    cni_call(api, body, |cni, request| cni.status(request)).await
}

async fn cni_call<Call, Answer>(
    api: Api,
    body: Result<Bytes, BytesRejection>,
    verb: fn(&CniServer, Call) -> Result<Answer, CniFailure>,
) -> Response
where
    Call: DeserializeOwned + Send + 'static,
    Answer: Serialize + Send + 'static,
{
    let request = match decode(body) {
        Ok(request) => request,
        Err(message) => return cni_failure(&Failure::new(code::DECODE, message)),
    };
    let Ok(slot) = api.cni_slots.acquire_owned().await else {
        return cni_failure(&Failure::new(code::TRY_AGAIN_LATER, "the agent is stopping"));
    };
    let work = tokio::task::spawn_blocking(move || {
        let outcome = verb(&api.cni, request);
        drop(slot);
        outcome
    });
    match work.await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(failure)) => cni_failure(&failure.to_failure()),
        Err(defect) => {
            let failure = Failure::new(code::IO, "the agent failed by a defect of its own");
            cni_failure(&failure.with_details(defect.to_string()))
        }
    }
}

fn cni_failure(failure: &Failure) -> Response {
    let status = match failure.code {
        code::TRY_AGAIN_LATER | code::NOT_AVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        code::IO => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, Json(failure)).into_response()
}

#[derive(Deserialize)]
struct FlowsQuery {
    limit: Option<usize>,
}

async fn show_flows(State(api): State<Api>, Query(query): Query<FlowsQuery>) -> Response {
    let limit = query.limit.unwrap_or(api.limits.flows);
    tell(api, move |inspect| inspect.flows(limit)).await
}

async fn show_connections(State(api): State<Api>, Query(query): Query<ConnectionsQuery>) -> Response {
    let limit = query.limit.unwrap_or(api.limits.flows);
    tell(api, move |inspect| inspect.connections(&query, limit)).await
}

#[derive(Deserialize)]
struct PoliciesQuery {
    pod: Option<String>,
}

async fn show_policies(State(api): State<Api>, Query(query): Query<PoliciesQuery>) -> Response {
    tell(api, move |inspect| inspect.policies(query.pod.as_deref())).await
}

async fn policy_diff(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    match decode::<PolicyDiffRequest>(body) {
        Ok(request) => {
            let request = PolicyDiffRequest { limit: request.limit.or(Some(api.limits.flows)), ..request };
            tell(api, move |inspect| inspect.policy_diff(&request)).await
        }
        Err(message) => error(StatusCode::BAD_REQUEST, message),
    }
}

async fn policy_reach(State(api): State<Api>, Query(query): Query<PolicyReachQuery>) -> Response {
    let query = PolicyReachQuery { limit: query.limit.or(Some(api.limits.flows)), ..query };
    tell(api, move |inspect| inspect.policy_reach(&query)).await
}

async fn trace(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    match decode::<TraceRequest>(body) {
        Ok(request) => tell(api, move |inspect| inspect.trace(&request)).await,
        Err(message) => error(StatusCode::BAD_REQUEST, message),
    }
}

async fn tell<Report, Ask>(api: Api, ask: Ask) -> Response
where
    Report: Serialize + Send + 'static,
    Ask: FnOnce(&dyn Inspect) -> Result<Report, InspectFailure> + Send + 'static,
{
    match tokio::task::spawn_blocking(move || ask(&*api.inspect)).await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(failure)) => {
            let status = match failure {
                InspectFailure::NotFound(_) => StatusCode::NOT_FOUND,
                InspectFailure::Invalid(_) => StatusCode::BAD_REQUEST,
                InspectFailure::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            error(status, failure.to_string())
        }
        Err(defect) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("a defect of the agent: {defect}")),
    }
}

fn decode<Document: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<Document, String> {
    let body = body.map_err(|rejection| format!("the request could not be read: {rejection}"))?;
    serde_json::from_slice(&body).map_err(|error| format!("the request cannot be decoded: {error}"))
}

fn error(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(ErrorReport { message: message.into() })).into_response()
}
