//! The local API: HTTP/1.1 and JSON on a unix socket that only root may open.
//!
//! | method and path | answer |
//! |---|---|
//! | POST `/v1/cni/add`, `del`, `check`, `gc`, `status` | `millrace_cni::protocol` |
//! | GET `/v1/show/ports`, `workers`, `routes`, `services`, `neighbours`, `drops`, `receipts`, `status` | lists and documents of [`model`] |
//! | GET `/v1/show/flows?limit=N` | [`model::FlowsReport`] |
//! | GET `/v1/show/connections?limit=N&pod=NS/NAME&state=S` | [`model::ConnectionsReport`] for a [`model::ConnectionsQuery`] |
//! | GET `/v1/show/fdb`, `/v1/show/ipam`, `/v1/check/ipam` | [`model::StationReport`]s, [`model::IpamReport`], [`model::IpamCheckReport`] |
//! | GET `/v1/show/policies?pod=NAMESPACE/POD` | [`model::PoliciesReport`] |
//! | POST `/v1/policy/diff` | [`model::PolicyDiffReport`] for a [`model::PolicyDiffRequest`] |
//! | GET `/v1/policy/reach?from=WHO&to=WHO&limit=N` | [`model::PolicyReachReport`] for a [`model::PolicyReachQuery`] |
//! | GET `/v1/support` | [`model::SupportReport`] |
//! | POST `/v1/trace/frame` | [`model::TraceReport`] for a [`model::TraceFrameRequest`] |
//! | POST `/v1/capture/begin` | [`model::CaptureBegun`] for a [`model::CaptureRequest`] |
//! | POST `/v1/capture/next`, `/v1/capture/end` | [`model::CaptureBatch`] for a [`model::CaptureName`] |
//! | POST `/v1/trace` | [`model::TraceReport`] for a [`model::TraceRequest`] |
//!
//! [`socket`] owns the socket file, [`server`] the routes and the bounds, [`client`] is what the command line uses.
//! What there is to tell comes from [`Inspect`], which the agent implements. Nothing here runs on a packet thread.

pub mod client;
pub mod connections;
pub mod model;
pub mod server;
pub mod socket;

use model::{
    CaptureBatch, CaptureBegun, CaptureRequest, ConnectionsQuery, ConnectionsReport, DropReport, FlowsReport,
    IpamCheckReport, IpamReport, NeighbourReport, PoliciesReport, PolicyDiffReport, PolicyDiffRequest,
    PolicyReachQuery, PolicyReachReport, PortReport, ReceiptReport, RouteReport, ServiceReport, StationReport,
    StatusReport, SupportReport, TraceFrameRequest, TraceReport, TraceRequest, WorkerReport,
};

/// What the agent tells about itself. Called from blocking threads; a call may wait a moment for a worker.
pub trait Inspect: Send + Sync + 'static {
    /// All ports, in order of their numbers.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn ports(&self) -> Result<Vec<PortReport>, InspectFailure>;

    /// All workers, in order of their numbers.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn workers(&self) -> Result<Vec<WorkerReport>, InspectFailure>;

    /// All routes, by segment and prefix.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn routes(&self) -> Result<Vec<RouteReport>, InspectFailure>;

    /// All ports of Services, by name.
    ///
    /// # Errors
    /// When the agent cannot tell.
    fn services(&self) -> Result<Vec<ServiceReport>, InspectFailure>;

    /// Next hops on the underlay, by address.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn neighbours(&self) -> Result<Vec<NeighbourReport>, InspectFailure>;

    /// The flow caches' entries, at most `limit` of them.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn flows(&self, limit: usize) -> Result<FlowsReport, InspectFailure>;

    /// Connections that match `query`, at most `limit`.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn connections(&self, query: &ConnectionsQuery, limit: usize) -> Result<ConnectionsReport, InspectFailure>;

    /// Drop reasons with a count, in order of their numbers.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn drops(&self) -> Result<Vec<DropReport>, InspectFailure>;

    /// Stations of bridged segments, by segment and MAC address.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn stations(&self) -> Result<Vec<StationReport>, InspectFailure>;

    /// Pools, blocks, and the addresses in use on this node.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn ipam(&self) -> Result<IpamReport, InspectFailure>;

    /// Addresses and blocks that are lost.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn check_ipam(&self) -> Result<IpamCheckReport, InspectFailure>;

    /// What judges the pods of this node, or one of them (`namespace/name`).
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn policies(&self, pod: Option<&str>) -> Result<PoliciesReport, InspectFailure>;

    /// Connections whose verdict would change with other objects.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn policy_diff(&self, request: &PolicyDiffRequest) -> Result<PolicyDiffReport, InspectFailure>;

    /// Who may reach whom.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn policy_reach(&self, query: &PolicyReachQuery) -> Result<PolicyReachReport, InspectFailure>;

    /// Which versions of objects are in force, by kind and name.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn receipts(&self) -> Result<Vec<ReceiptReport>, InspectFailure>;

    /// Node, tables and problems.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn status(&self) -> Result<StatusReport, InspectFailure>;

    /// Follows an imagined packet through the live tables.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectFailure>;

    /// Follows a given frame through the live tables.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn trace_frame(&self, request: &TraceFrameRequest) -> Result<TraceReport, InspectFailure>;

    /// What packets can be explained by elsewhere: the objects, and what this node knows beside them.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn support(&self) -> Result<SupportReport, InspectFailure>;

    /// Begins to capture packets. One capture runs at a time; it ends by itself when nobody fetches.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn begin_capture(&self, request: &CaptureRequest) -> Result<CaptureBegun, InspectFailure>;

    /// What the capture of this number has seen since the last call; waits a quarter of a second for something.
    ///
    /// # Errors
    /// See [`InspectFailure`].
    fn next_captured(&self, capture: u64) -> Result<CaptureBatch, InspectFailure>;

    /// Ends the capture of this number, if it runs.
    fn end_capture(&self, capture: u64);
}

/// Why there is nothing to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectFailure {
    /// What was asked about does not exist here; the text says what.
    #[error("{0}")]
    NotFound(String),
    /// The question makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be told now; the text says why.
    #[error("{0}")]
    Unavailable(String),
}
