//! `show receipts`: which versions of objects packets meet.

use crate::api::model::ReceiptReport;
use crate::receipts::Receipt;
use crate::store::ObjectKey;

/// Each as a document.
pub(super) fn tell(receipts: Vec<(ObjectKey, Receipt)>) -> Vec<ReceiptReport> {
    receipts.into_iter().map(|(key, receipt)| one(&key, &receipt)).collect()
}

fn one(key: &ObjectKey, receipt: &Receipt) -> ReceiptReport {
    ReceiptReport {
        kind: key.kind.kind.to_string(),
        name: key.namespace.as_ref().map_or_else(|| key.name.clone(), |namespace| format!("{namespace}/{}", key.name)),
        resource_version: receipt.version.resource.to_string(),
        generation: receipt.version.generation,
        in_force: receipt.refused.is_none(),
        refused: receipt.refused.as_deref().map(str::to_owned),
        tables_generation: receipt.tables,
        since: receipt.since.to_string(),
        took_milliseconds: receipt.took.map(|took| took.as_secs_f64() * 1e3),
    }
}
