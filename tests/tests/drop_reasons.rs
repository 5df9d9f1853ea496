//! Every reason to drop a packet is met by some test: its name stands in a scenario or a capture's text, or a test's code speaks
//! of it. A reason that comes to the list without one fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_engine::drop_reason::DropReason;

/// Reasons that no test meets, and why.
const EXCEPTIONS: &[(DropReason, &str)] = &[
    (
        DropReason::ConnectionRaced,
        "another worker has to win four races for one tuple in a row, within a microsecond each",
    ),
    (
        DropReason::ConnectionsFull,
        "a full table makes room; others have to take it five times in a row before its lock is taken again",
    ),
];

/// Where tests stand, and what holds their words.
const PLACES: &[&str] = &["engine/src", "engine/tests", "control/src", "control/tests", "tests"];

/// This file, whose exceptions are no tests.
const OWN: &str = "tests/tests/drop_reasons.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of every file below the place, by its path from the root.
fn collect(place: &str, texts: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(root().join(place)).expect(place) {
        let entry = entry.expect(place);
        let path = format!("{place}/{}", entry.file_name().to_string_lossy());
        match entry.file_type().expect(place) {
            kind if kind.is_dir() && entry.file_name() != "target" => collect(&path, texts),
            // Captures beside their texts are no text.
            kind if kind.is_file() => texts.extend(fs::read_to_string(entry.path()).ok().map(|text| (path, text))),
            _ => {}
        }
    }
}

/// The part of a file that tests: all of a scenario, of a capture's text, and of a file of tests; of other sources what stands in
/// their module of tests.
fn tested(path: &str, text: String) -> String {
    let is_test = |path: &str| {
        path.starts_with("tests/")
            || path.contains("/tests/")
            || path.ends_with("/tests.rs")
            || path.ends_with("_tests.rs")
    };
    match path.rsplit_once('.') {
        _ if path == OWN => String::new(),
        Some((_, "rs")) if !is_test(path) => {
            text.split_once("#[cfg(test)]\nmod tests {").map_or_else(String::new, |(_, tests)| tests.to_owned())
        }
        Some((_, "rs" | "scenario" | "txt")) => text,
        _ => String::new(),
    }
}

/// The words of a text, and the variants that stand behind `DropReason::` or in an import from it.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let words = text.split(move |character| !is_word(character)).filter(|word| !word.contains(char::is_uppercase));
    let behind = text.split("DropReason::").skip(1).filter_map(move |rest| rest.split(move |at| !is_word(at)).next());
    let lists = text.split("use DropReason::{").skip(1).filter_map(|rest| rest.split('}').next());
    words.chain(behind).chain(lists.flat_map(|list| list.split(',').map(str::trim)))
}

#[test]
fn every_drop_reason_is_met_by_a_test() {
    let mut texts = Vec::new();
    PLACES.iter().for_each(|place| collect(place, &mut texts));
    let texts: Vec<String> = texts.into_iter().map(|(path, text)| tested(&path, text)).collect();
    let known: BTreeSet<&str> = texts.iter().flat_map(|text| names(text)).collect();
    let met = |reason: &DropReason| known.contains(reason.name()) || known.contains(format!("{reason:?}").as_str());
    let is_exception = |reason: &DropReason| EXCEPTIONS.iter().any(|(known, _)| known == reason);
    let unmet: Vec<_> = DropReason::ALL.iter().filter(|reason| !met(reason) && !is_exception(reason)).collect();
    assert!(unmet.is_empty(), "no test meets {unmet:?}");
    let needless: Vec<_> = EXCEPTIONS.iter().filter(|(reason, _)| met(reason)).collect();
    assert!(needless.is_empty(), "a test meets these by now: {needless:?}");
}

#[test]
fn only_tests_count() {
    let source = "drop(PortDown, DropReason::PortDown);\n#[cfg(test)]\nmod tests {\n    use DropReason::{LaneFull, NoRoute};\n}\n";
    let found = |path: &str| names(&tested(path, source.to_owned())).map(str::to_owned).collect::<BTreeSet<_>>();
    assert!(!found("engine/src/a.rs").contains("PortDown"));
    assert!(found("engine/src/a.rs").contains("NoRoute"));
    assert!(found("engine/tests/a.rs").contains("PortDown"));
    assert!(found("engine/src/a/tests.rs").contains("PortDown"));
    assert!(names("moved a no_route +1").any(|name| name == "no_route"));
    assert!(!names("moved a no_route_here +1").any(|name| name == "no_route"));
    assert!(!names("RouteTarget::Unreachable").any(|name| name == "Unreachable"));
}
