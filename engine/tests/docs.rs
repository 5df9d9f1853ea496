//! Pages of `docs/` that are made from the code, and whether the others still agree with it.
//!
//! `MILLRACE_WRITE_DOCS=1 cargo test -p millrace-engine --test docs` writes the generated pages anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;

const GENERATED: &str = "Generated; `MILLRACE_WRITE_DOCS=1 cargo test -p millrace-engine --test docs` writes it anew.";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares a page with what it must say, or writes it if asked to.
fn hold(name: &str, expected: &str) {
    let path = docs().join(name);
    if std::env::var_os("MILLRACE_WRITE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, expected).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(present, expected, "docs/{name} does not say what the code says. {GENERATED}");
}

/// A cell's text: a bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn drop_reasons_page_is_the_enum() {
    let mut page = format!(
        "# Drop reasons\n\nEvery packet that goes no further is counted under exactly one of these {} names. `millrace show \
         drops`,\n`millrace trace`, the tests and this page use the same names and sentences: they stand once, in\n\
         `engine/src/drop_reason.rs`. {GENERATED}\n\n| name | what happened | what to check next |\n|---|---|---|\n",
        DropReason::COUNT
    );
    for reason in DropReason::ALL {
        let (sentence, next) = (cell(reason.sentence()), cell(reason.next_step()));
        writeln!(page, "| `{}` | {sentence} | {next} |", reason.name()).expect("a string takes all");
    }
    hold("drop-reasons.md", &page);
}

#[test]
fn counters_page_is_the_enum() {
    let mut page = format!(
        "# Counters\n\nEach worker counts for itself; only it writes, so a count costs a load and a store. Drops are counted \
         by\n[reason](drop-reasons.md), frames and bytes by port (received, sent, dropped), and beside these the \
         events below.\nThey stand in `engine/src/counters.rs`. {GENERATED}\n\n| name | what it counts |\n|---|---|\n"
    );
    for event in Event::ALL {
        writeln!(page, "| `{}` | {} |", event.name(), cell(event.sentence())).expect("a string takes all");
    }
    page.push_str(
        "\n## Frames are conserved\nFor each worker, at rest: received + made + taken from lanes = sent + dropped + \
         consumed + merged + handed to lanes + held.\n`WorkerCounters::unaccounted` computes the difference; every test \
         on a whole switch expects zero.\n",
    );
    hold("counters.md", &page);
}

/// `docs/limits.md` has a row for each constant, with the value as the code writes it.
#[test]
fn limits_page_has_every_constant() {
    let source = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/limits.rs"));
    let page = read(&docs().join("limits.md"));
    let mut constants = 0;
    for line in source.lines() {
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        let (name, rest) = rest.split_once(':').expect("a constant has a type");
        let (_, value) = rest.split_once('=').expect("a constant has a value");
        let row = format!("| `{name}` | {} |", value.trim().trim_end_matches(';'));
        assert!(page.contains(&row), "docs/limits.md has no row that begins {row}");
        constants += 1;
    }
    assert!(constants > 30, "only {constants} constants found: is limits.rs read rightly?");
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, constants, "docs/limits.md has rows for constants that are gone");
}

/// The pages people write: README and everything in `docs/`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![docs().join("../README.md")];
    for folder in [docs(), docs().join("decisions")] {
        let entries = fs::read_dir(&folder).expect("docs").map(|entry| entry.expect("docs").path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, text) in pages() {
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let place = path.parent().expect("a page lies in a folder").join(target);
            assert!(place.exists(), "{}: the link to {target} leads nowhere", path.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links found");
}

/// A source file or folder that a page names must exist.
#[test]
fn files_named_exist() {
    let root = docs().join("..");
    let mut files = 0;
    for (path, text) in pages() {
        for name in text.split('`').skip(1).step_by(2) {
            let ours = ["engine/", "control/", "cni-shim/"].iter().any(|member| name.starts_with(member));
            if !ours || name.contains([' ', '*', '{']) {
                continue;
            }
            assert!(root.join(name).exists(), "{}: {name} does not exist", path.display());
            files += 1;
        }
    }
    assert!(files > 50, "only {files} files found");
}
