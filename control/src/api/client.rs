//! The typed client of the local API, for the command line. Blocking, since a command does one thing.

use std::path::PathBuf;
use std::time::Duration;

use millrace_cni::agent_client::{AgentClient, Answer, ClientError};
use millrace_cni::protocol::{STATUS_PATH, StatusRequest};
use millrace_cni::spec::Failure;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::model::{
    CaptureBatch, CaptureBegun, CaptureName, CaptureRequest, ErrorReport, PolicyDiffReport, PolicyDiffRequest,
    SupportReport, TraceFrameRequest, TraceReport, TraceRequest,
};

/// Longest answer read: a million flows.
const ANSWER_BYTES: u64 = 512 << 20;

/// How long a command waits.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    agent: AgentClient,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens, or not in time.
    #[error(transparent)]
    NotReachable(ClientError),
    /// The connection failed, or what answers is no agent.
    #[error(transparent)]
    Connection(ClientError),
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The agent's words.
        message: String,
    },
    /// The answer is not the document asked for.
    #[error("the agent's answer cannot be decoded; is it of another version?")]
    Decode(#[source] serde_json::Error),
}

impl Client {
    /// A client of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Client {
        Client { agent: AgentClient { socket, timeout: TIMEOUT, body_bytes: ANSWER_BYTES } }
    }

    /// The document at `/v1/show/` and `what`.
    ///
    /// # Errors
    /// When the agent is not reachable, refuses, or answers something else.
    pub fn show<Report: DeserializeOwned>(&self, what: &str) -> Result<Report, ApiError> {
        self.document(&format!("/v1/show/{what}"))
    }

    /// The document at this path.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn document<Report: DeserializeOwned>(&self, path: &str) -> Result<Report, ApiError> {
        decode(self.agent.get(path))
    }

    /// Asks which connections would get another verdict.
    ///
    /// # Errors
    /// As [`show`](Self::show); objects that are not valid are refused.
    pub fn policy_diff(&self, request: &PolicyDiffRequest) -> Result<PolicyDiffReport, ApiError> {
        let body = serde_json::to_vec(request).map_err(ApiError::Decode)?;
        decode(self.agent.post("/v1/policy/diff", &body))
    }

    /// Whether the agent could plug a pod in, as the plugin's STATUS asks it.
    ///
    /// # Errors
    /// As [`show`](Self::show); a refusal says what it waits for.
    pub fn ready(&self) -> Result<(), ApiError> {
        let body = serde_json::to_vec(&StatusRequest { network: "millrace".to_owned() }).map_err(ApiError::Decode)?;
        decode::<IgnoredAny>(self.agent.post(STATUS_PATH, &body)).map(drop)
    }

    /// Follows a frame as if it came in by a port.
    ///
    /// # Errors
    /// As [`show`](Self::show); an unknown port is refused.
    pub fn trace_frame(&self, request: &TraceFrameRequest) -> Result<TraceReport, ApiError> {
        self.ask("/v1/trace/frame", request)
    }

    /// What packets can be explained by elsewhere.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn support(&self) -> Result<SupportReport, ApiError> {
        self.document("/v1/support")
    }

    /// Begins to capture packets.
    ///
    /// # Errors
    /// As [`show`](Self::show); refused while another capture runs.
    pub fn begin_capture(&self, request: &CaptureRequest) -> Result<CaptureBegun, ApiError> {
        self.ask("/v1/capture/begin", request)
    }

    /// What was captured since the last call.
    ///
    /// # Errors
    /// As [`show`](Self::show); a capture that has ended is refused.
    pub fn next_captured(&self, capture: u64) -> Result<CaptureBatch, ApiError> {
        self.ask("/v1/capture/next", &CaptureName { capture })
    }

    /// Ends a capture.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn end_capture(&self, capture: u64) -> Result<(), ApiError> {
        self.ask::<IgnoredAny>("/v1/capture/end", &CaptureName { capture }).map(drop)
    }

    fn ask<Report: DeserializeOwned>(&self, path: &str, request: &impl serde::Serialize) -> Result<Report, ApiError> {
        let body = serde_json::to_vec(request).map_err(ApiError::Decode)?;
        decode(self.agent.post(path, &body))
    }

    /// Follows an imagined packet.
    ///
    /// # Errors
    /// As [`show`](Self::show); an unknown pod is refused.
    pub fn trace(&self, request: &TraceRequest) -> Result<TraceReport, ApiError> {
        let body = serde_json::to_vec(request).map_err(ApiError::Decode)?;
        decode(self.agent.post("/v1/trace", &body))
    }
}

fn decode<Report: DeserializeOwned>(answer: Result<Answer, ClientError>) -> Result<Report, ApiError> {
    let answer = answer.map_err(|error| match error {
        ClientError::Absent(..) | ClientError::Timeout(_) => ApiError::NotReachable(error),
        ClientError::Connection(_) | ClientError::Malformed(_) => ApiError::Connection(error),
    })?;
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(ApiError::Decode);
    }
    let of_plugin = || serde_json::from_slice::<Failure>(&answer.body).map(|failure| failure.message);
    let message =
        serde_json::from_slice::<ErrorReport>(&answer.body).map(|report| report.message).or_else(|_| of_plugin());
    let message = message.unwrap_or_else(|_| format!("the agent answered with status {}", answer.status));
    Err(ApiError::Refused { status: answer.status, message })
}
