//! `show receipts` for people.

use super::{left, render, right};
use crate::api::model::ReceiptReport;

/// `show receipts`.
pub(in crate::cli) fn receipts(list: &[ReceiptReport]) -> String {
    let rows = list.iter().map(|receipt| {
        let version = match receipt.generation {
            Some(generation) => format!("{generation} ({})", receipt.resource_version),
            None => receipt.resource_version.clone(),
        };
        let stands = receipt.refused.as_ref().map_or_else(|| "in force".to_owned(), |why| format!("refused: {why}"));
        let took = receipt.took_milliseconds.map_or_else(|| "at the start".to_owned(), |took| format!("{took:.1} ms"));
        vec![
            left(&receipt.kind),
            left(&receipt.name),
            left(version),
            right(receipt.tables_generation.to_string()),
            left(&receipt.since),
            right(took),
            left(stands),
        ]
    });
    let titles = ["Kind", "Name", "Generation (version)", "Tables", "Since", "Took", "Stands"];
    render(&titles, rows, "There is no Service and no policy.")
}
