//! What `millrace support-bundle` is given: the objects as the store tells them now, and the state beside them.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::clock::Clock;

use super::super::shared::Shared;
use crate::api::InspectFailure;
use crate::api::model::SupportReport;
use crate::observe::KINDS;
use crate::store::{Event, ObjectStore};
use crate::support::SavedState;

/// How long the store may take to tell all objects.
const OBJECTS: Duration = Duration::from_secs(30);
/// Looks until objects and tables are of one moment.
const LOOKS: usize = 5;

pub(super) fn tell(shared: &Shared, store: &dyn ObjectStore) -> Result<SupportReport, InspectFailure> {
    let mut report = look(shared, store)?;
    for _ in 1..LOOKS {
        // Tables that were published while the objects were read may be of others than these.
        if shared.switch.with(|switch| switch.tables().generation) == report.state.generation {
            break;
        }
        report = look(shared, store)?;
    }
    Ok(report)
}

fn look(shared: &Shared, store: &dyn ObjectStore) -> Result<SupportReport, InspectFailure> {
    let (tables, state) = shared.switch.with(|switch| (switch.tables(), Arc::clone(switch.state())));
    let local = shared.standing().local;
    let local = local.ok_or_else(|| InspectFailure::Unavailable("the store has not told all objects yet".into()))?;
    let objects = objects(store)?;
    let state = SavedState::of(&local, tables.generation, &state, Clock::Monotonic.now());
    Ok(SupportReport { objects, state })
}

fn objects(store: &dyn ObjectStore) -> Result<Vec<serde_json::Value>, InspectFailure> {
    let unavailable = |error: String| InspectFailure::Unavailable(error);
    let watch = store.watch(&KINDS).map_err(|error| unavailable(error.to_string()))?;
    let mut objects = Vec::new();
    loop {
        match watch.events.recv_timeout(OBJECTS) {
            Ok(Event::Applied(object)) => objects.push(object.to_json()),
            Ok(Event::Synced) => return Ok(objects),
            Ok(Event::Deleted(_) | Event::Problems(_)) => {}
            Err(_) => return Err(unavailable("the store did not tell all objects in time".into())),
        }
    }
}
