//! Bars with the spread of each, as SVG: one file for each unit of a load, a group of bars for each way.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::measure::Metric;
use crate::results::{Spread, Table, short};

const LEFT: f64 = 250.0;
const WIDTH: f64 = 420.0;
const BAR: f64 = 16.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#54a0d8", "#c0622b", "#e0a458", "#5d7b52", "#9aae8e"];

/// A way with the values of each backend.
type Row<'a> = (&'a Metric, &'a BTreeMap<&'static str, Spread>);

/// The charts of a table by file name.
pub(crate) fn charts(table: &Table) -> BTreeMap<String, String> {
    let mut groups: BTreeMap<(&str, &str), Vec<Row<'_>>> = BTreeMap::new();
    for (metric, values) in table {
        groups.entry((metric.load, metric.unit)).or_default().push((metric, values));
    }
    groups.into_iter().map(|((load, unit), rows)| (file_name(load, unit), chart(load, unit, &rows))).collect()
}

fn file_name(load: &str, unit: &str) -> String {
    let plain = |text: &str| {
        let letters = text.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { ' ' });
        letters.collect::<String>().split_whitespace().collect::<Vec<_>>().join("-").to_lowercase()
    };
    format!("{}-{}.svg", plain(load), plain(unit))
}

fn chart(load: &str, unit: &str, rows: &[Row<'_>]) -> String {
    let highest = rows.iter().flat_map(|(_, values)| values.values()).map(|spread| spread.highest).fold(0.0, f64::max);
    let along = |value: f64| LEFT + WIDTH * value / highest.max(1e-9);
    let (mut body, mut y) = (String::new(), 40.0);
    for (metric, values) in rows {
        y += 8.0;
        text(&mut body, 10.0, y + 12.0, "start", &metric.way, true);
        y += BAR + 4.0;
        for (number, (backend, spread)) in values.iter().enumerate() {
            let (end, middle) = (along(spread.median), y + BAR / 2.0);
            text(&mut body, LEFT - 8.0, middle + 4.0, "end", backend, false);
            // Writing to a string does not fail.
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n\
                 <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222\" stroke-width=\"1.5\"/>",
                end - LEFT,
                BAR - 3.0,
                COLOURS[number % COLOURS.len()],
                along(spread.lowest),
                along(spread.highest),
            );
            text(&mut body, along(spread.highest) + 6.0, middle + 4.0, "start", &short(spread.median), false);
            y += BAR;
        }
    }
    let (width, height) = (LEFT + WIDTH + 80.0, y + 16.0);
    let mut head = String::new();
    text(&mut head, 10.0, 22.0, "start", &format!("{load}: {unit} (median; the line is lowest to highest)"), true);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{head}{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str, bold: bool) {
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{weight}>{words}</text>");
}
