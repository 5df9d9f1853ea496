//! All values of a run: as CSV, each by itself, and as a Markdown table of medians with the lowest and the highest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::measure::{Metric, Value};

/// One value, with whose it is and when it was taken.
pub(crate) struct Sample {
    pub(crate) backend: &'static str,
    pub(crate) round: usize,
    pub(crate) value: Value,
}

/// Values of one metric and backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

/// By metric, then by backend.
pub(crate) type Table = BTreeMap<Metric, BTreeMap<&'static str, Spread>>;

pub(crate) fn table(samples: &[Sample]) -> Table {
    let mut values: BTreeMap<Metric, BTreeMap<&'static str, Vec<f64>>> = BTreeMap::new();
    for Sample { backend, value, .. } in samples {
        values.entry(value.metric.clone()).or_default().entry(backend).or_default().push(value.value);
    }
    let spreads = |of: BTreeMap<&'static str, Vec<f64>>| {
        of.into_iter().filter_map(|(backend, values)| Some((backend, spread(values)?))).collect()
    };
    values.into_iter().map(|(metric, of)| (metric, spreads(of))).collect()
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_unstable_by(f64::total_cmp);
    let (lowest, highest) = (*values.first()?, *values.last()?);
    Some(Spread { lowest, median: *values.get(values.len() / 2)?, highest })
}

pub(crate) fn csv(samples: &[Sample]) -> String {
    let mut text = "backend,round,way,load,unit,value\n".to_owned();
    for Sample { backend, round, value } in samples {
        let Metric { way, load, unit } = &value.metric;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{backend},{round},\"{way}\",\"{load}\",\"{unit}\",{:.4}", value.value);
    }
    text
}

pub(crate) fn markdown(table: &Table) -> String {
    let backends: BTreeSet<_> = table.values().flat_map(BTreeMap::keys).copied().collect();
    let mut text = format!(
        "| way | load | unit | {} |\n|---|---|---|{}\n",
        backends.iter().copied().collect::<Vec<_>>().join(" | "),
        "---:|".repeat(backends.len())
    );
    for (Metric { way, load, unit }, values) in table {
        let _ = write!(text, "| {way} | {load} | {unit} |");
        for backend in &backends {
            let cell = values.get(backend).map_or_else(String::new, Spread::text);
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

impl Spread {
    fn text(&self) -> String {
        let Spread { lowest, median, highest } = self;
        if lowest == highest {
            return short(*median);
        }
        format!("{} ({} to {})", short(*median), short(*lowest), short(*highest))
    }
}

/// Three digits that count.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(backend: &'static str, round: usize, value: f64) -> Sample {
        let metric = Metric { way: "same node".to_owned(), load: "TCP, 1 stream", unit: "Gbit/s" };
        Sample { backend, round, value: Value { metric, value } }
    }

    #[test]
    fn a_cell_is_the_median_with_its_spread_and_missing_ones_are_empty() {
        let samples = [sample("one", 0, 12.0), sample("one", 1, 8.0), sample("one", 2, 9.0), sample("other", 0, 0.5)];
        let text = markdown(&table(&samples));
        assert!(text.contains("| same node | TCP, 1 stream | Gbit/s | 9.00 (8.00 to 12.0) | 0.500 |"), "{text}");
        assert_eq!(csv(&samples).lines().nth(2), Some("one,1,\"same node\",\"TCP, 1 stream\",\"Gbit/s\",8.0000"));
    }
}
