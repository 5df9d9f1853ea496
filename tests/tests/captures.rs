//! Golden captures: every text in `captures/` is a test of its own, see `millrace_tests::capture`; and together they show
//! every stage, every reason of a drop that a capture can show, and every feature listed in `captures/README.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use millrace_engine::drop_reason::DropReason;
use millrace_tests::capture;

/// Reasons of drops that no capture can show, and why.
const BEYOND_CAPTURES: &[(&str, &str)] = &[
    ("gso_malformed", "a capture has no offload metadata"),
    ("port_unknown", "ports are plugged in before the first packet"),
    ("port_down", "no port of a replay loses its queue and stays in the tables"),
    ("connection_raced", "one packet at a time is decided"),
    ("connections_full", "would take a capture of a million flows; tests/tests/flood.rs"),
    ("neighbour_unresolved", "every next hop has a MAC address, made up where no capture tells it"),
    ("masquerade_ports_exhausted", "would take a capture of thousands of flows; tests/tests/services/masquerade.rs"),
    ("fragments_held_full", "would take a flood; tests/tests/services/fragments.rs"),
    ("frames_exhausted", "one packet at a time lies in frame memory"),
    ("transmit_queue_full", "ports of a replay take everything"),
    ("lane_full", "lanes are emptied after each packet"),
    ("port_refused", "no kernel stands behind a port"),
];

fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(capture::folder()).expect("the folder of captures");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    folders.retain(|folder| folder.join("out/fates.txt").exists() || folder.join("case.txt").exists());
    folders.sort();
    folders
}

fn name(folder: &std::path::Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What becomes of all packets of all captures, as checked in.
fn fates() -> String {
    let text = |folder: PathBuf| fs::read_to_string(folder.join("out/fates.txt")).unwrap_or_default();
    folders().into_iter().map(text).collect()
}

fn every_stage_occurs() -> Result<(), Failed> {
    let fates = fates();
    for stage in ["admit", "reply", "bridge", "connection", "service", "route", "policy", "masquerade", "encap"] {
        if !fates.lines().any(|line| line.starts_with(&format!("  {stage} "))) {
            return Err(format!("no capture shows the stage {stage}").into());
        }
    }
    Ok(())
}

fn every_drop_reason_occurs() -> Result<(), Failed> {
    let fates = fates();
    let shown: BTreeSet<&str> = fates.lines().filter_map(|line| line.strip_prefix("  => dropped ")).collect();
    let beyond: BTreeSet<&str> = BEYOND_CAPTURES.iter().map(|(name, _)| *name).collect();
    let all: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    let missing: Vec<&&str> = all.iter().filter(|name| !shown.contains(*name) && !beyond.contains(*name)).collect();
    let both: Vec<&&str> = beyond.iter().filter(|name| shown.contains(*name) || !all.contains(*name)).collect();
    if missing.is_empty() && both.is_empty() {
        return Ok(());
    }
    Err(format!("no capture shows {missing:?}; listed as beyond captures, yet shown or unknown: {both:?}").into())
}

/// Rows of the table of features in `captures/README.md`: what the first column says, and the folders that the last names.
fn listed() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(capture::folder().join("README.md")).expect("README.md");
    let features = text.split("## Features").nth(1).unwrap_or_default();
    let rows = features.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let named = cells.last().unwrap_or(&"").split('`').skip(1).step_by(2).map(str::to_owned);
        (cells.first().copied().unwrap_or_default().to_owned(), named.collect())
    };
    rows.map(row).collect()
}

fn every_feature_has_a_capture() -> Result<(), Failed> {
    let folders: BTreeSet<String> = folders().iter().map(|folder| name(folder)).collect();
    let mut named = BTreeSet::new();
    for (feature, captures) in listed() {
        let absent: Vec<&String> = captures.iter().filter(|capture| !folders.contains(*capture)).collect();
        if captures.is_empty() || !absent.is_empty() {
            return Err(format!("{feature:?} names {captures:?}, of which there are no {absent:?}").into());
        }
        named.extend(captures);
    }
    let unexplained: Vec<&String> = folders.difference(&named).collect();
    if unexplained.is_empty() { Ok(()) } else { Err(format!("README.md does not explain {unexplained:?}").into()) }
}

fn main() -> ExitCode {
    let cases = folders().into_iter().filter(|folder| folder.join("case.txt").exists());
    let trial = |folder: PathBuf| {
        let name = name(&folder);
        Trial::test(name, move || capture::check(&folder).map_err(|report| Failed::from(format!("\n{report}"))))
    };
    let mut trials: Vec<Trial> = cases.map(trial).collect();
    trials.push(Trial::test("every_stage_occurs", every_stage_occurs));
    trials.push(Trial::test("every_drop_reason_occurs", every_drop_reason_occurs));
    trials.push(Trial::test("every_feature_has_a_capture", every_feature_has_a_capture));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
