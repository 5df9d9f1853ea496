//! `show fdb` for people.

use super::{duration, left, render, right};
use crate::api::model::StationReport;

/// `show fdb`.
pub(in crate::cli) fn stations(list: &[StationReport]) -> String {
    let rows = list.iter().map(|station| {
        let age = match station.age_milliseconds {
            _ if station.is_static => "static".to_owned(),
            Some(age) => duration(age),
            None => "unknown".to_owned(),
        };
        vec![
            left(&station.segment),
            right(station.vlan.map_or_else(|| "-".to_owned(), |vlan| vlan.to_string())),
            left(&station.mac),
            left(&station.location),
            right(age),
        ]
    });
    render(&["Segment", "VLAN", "MAC", "Where", "Age"], rows, "No station is known.")
}
