//! `policy diff` and `policy reach` against this agent: its objects, its connections, its counts.

use std::sync::Arc;

use millrace_engine::state::Connections;
use millrace_engine::tables::Snapshot;

use super::super::shared::Shared;
use crate::api::InspectFailure;
use crate::api::model::{PolicyDiffReport, PolicyDiffRequest, PolicyReachQuery, PolicyReachReport};
use crate::cluster::Cluster;
use crate::plan::LocalView;
use crate::policy_preview::reach::{self, Question, Selection};
use crate::policy_preview::{self, Names, Proposal};

pub(super) fn diff(
    shared: &Shared,
    tables: &Snapshot,
    connections: &Connections,
    request: &PolicyDiffRequest,
) -> Result<PolicyDiffReport, InspectFailure> {
    let invalid = |error: policy_preview::ProposalError| InspectFailure::Invalid(error.to_string());
    let proposal = Proposal::from_json(&request.objects, request.delete).map_err(invalid)?;
    let (cluster, local) = known(shared)?;
    let (proposed, problems) = proposal.tables(tables, &cluster, &local).map_err(invalid)?;
    let limit = request.limit.unwrap_or(usize::MAX);
    let names = Names::of(&cluster);
    let report = policy_preview::diff::connections((tables, &proposed), connections, &names, limit);
    Ok(PolicyDiffReport { problems: problems.iter().map(Into::into).collect(), ..report })
}

pub(super) fn reach(
    shared: &Shared,
    tables: &Snapshot,
    query: &PolicyReachQuery,
) -> Result<PolicyReachReport, InspectFailure> {
    let selection = |name: &str, text: &Option<String>| match text {
        None => Ok(Selection::All),
        Some(text) => Selection::read(text).map_err(|error| InspectFailure::Invalid(format!("{name}: {error}"))),
    };
    let question = Question {
        from: selection("from", &query.from)?,
        to: selection("to", &query.to)?,
        limit: query.limit.unwrap_or(usize::MAX),
    };
    let (cluster, local) = known(shared)?;
    let report = reach::reach(&cluster, &local, &question).map_err(InspectFailure::NotFound)?;
    Ok(PolicyReachReport { unused_rules: Some(reach::unused(tables)), ..report })
}

fn known(shared: &Shared) -> Result<(Arc<Cluster>, Arc<LocalView>), InspectFailure> {
    let standing = shared.standing();
    let known = standing.cluster.zip(standing.local);
    known.ok_or_else(|| InspectFailure::Unavailable("the objects are not known yet".into()))
}
