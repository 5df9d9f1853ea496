//! `show fdb`: where the stations of bridged segments live.

use millrace_engine::clock::{Clock, Time};
use millrace_engine::packet::Mac;
use millrace_engine::slow_path::Location;
use millrace_engine::state::{State, Station};
use millrace_engine::tables::{SegmentIndex, Snapshot};

use super::port_name;
use crate::api::model::StationReport;

/// All stations, by segment and MAC address.
pub(super) fn stations(tables: &Snapshot, state: &State) -> Vec<StationReport> {
    let now = Clock::Monotonic.now();
    let mut learned: Vec<(SegmentIndex, Mac, Station)> = Vec::new();
    state.stations.for_each(|segment, mac, station| learned.push((segment, mac, station)));
    learned.sort_by_key(|(segment, mac, _)| (segment.0, mac.0));
    learned.iter().map(|(segment, mac, station)| report(tables, *segment, *mac, station, now)).collect()
}

fn report(tables: &Snapshot, segment: SegmentIndex, mac: Mac, station: &Station, now: Time) -> StationReport {
    let name = tables
        .segments
        .get(segment)
        .map_or_else(|| format!("segment {}", segment.0), |segment| segment.name.to_string());
    let location = match station.location {
        Location::Port(port) => port_name(tables, port),
        Location::Peer(address) => match tables.tunnels.peer(address) {
            Some(peer) => format!("tunnel to {}", peer.name),
            None => format!("tunnel to {address}"),
        },
    };
    StationReport {
        segment: name,
        vlan: None,
        mac: mac.to_string(),
        location,
        age_milliseconds: Some(now.since(station.seen).as_millis() as u64),
        is_static: false,
    }
}
