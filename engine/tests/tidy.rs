//! Rules of the repository that no compiler checks: who may depend on whom, where `unsafe` may stand, how long a file
//! may be. `docs/ARCHITECTURE.md` states them; this test keeps the page true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may contain `unsafe`, and why. A file that no longer needs it must leave the list.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("engine/src/cycles.rs", "reads the time-stamp counter"),
    ("engine/src/flow_cache/bucket.rs", "compares eight tags with one vector instruction"),
    ("engine/src/flow_cache/hash.rs", "AES instructions"),
    ("engine/src/flow_cache/huge_array.rs", "maps and advises memory"),
    ("engine/src/packet/copy_and_checksum.rs", "vector kernels"),
    ("engine/src/packet/crc32c.rs", "the CRC32 instruction"),
    ("engine/src/packet/frame_memory.rs", "hands out slices of one mapping"),
    ("engine/src/state/kept_memory.rs", "maps connections and affinities"),
    ("engine/src/port/af_xdp/rings.rs", "rings shared with the kernel"),
    ("engine/src/port/af_xdp/sys.rs", "kernel calls"),
    ("engine/src/port/namespace.rs", "setns"),
    ("engine/src/port/packet_socket/sys.rs", "kernel calls"),
    ("engine/src/port/socket.rs", "socket options and control messages"),
    ("engine/src/port/tap/device.rs", "ioctls"),
    ("engine/src/port/tap/steering.rs", "bpf(2)"),
    ("engine/src/port/tap/steering_run.rs", "bpf(2)"),
    ("engine/src/port/udp/sys.rs", "kernel calls"),
    ("engine/src/prefetch.rs", "prefetches"),
    ("engine/src/worker/time_slice.rs", "sched_setattr(2)"),
];

/// Longest source file, in lines.
const FILE_LINES: usize = 600;

/// Folders whose sources make the product.
const SOURCES: &[&str] = &["engine/src", "control/src", "cni-shim/src"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file of the product: its path from the root, with slashes, and its text.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root(), folder, &mut files);
    }
    assert!(files.len() > 100, "the walk found only {} files", files.len());
    files
}

/// Folders of tests and benches.
const TESTS: &[&str] = &["engine/tests", "control/tests", "cni-shim/tests", "tests", "benches"];

fn collect(root: &Path, folder: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(root.join(folder)).expect(folder) {
        let entry = entry.expect(folder);
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(root, &path, files);
        } else if path.ends_with(".rs") {
            files.push((path, fs::read_to_string(entry.path()).expect("source file")));
        }
    }
}

/// A line without its comment and without what stands between quotation marks.
fn code(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut quoted = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        if character == '"' && previous != '\\' && previous != '\'' {
            quoted = !quoted;
        } else if !quoted && line[at..].starts_with("//") {
            break;
        } else if !quoted {
            kept.push(character);
        }
        previous = character;
    }
    kept
}

/// Whether `word` stands in `line` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// `path:line` of every line of code for which `found` holds, in files for which `applies` does.
fn places(applies: impl Fn(&str) -> bool, found: impl Fn(&str) -> bool) -> Vec<String> {
    let mut places = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| applies(path)) {
        for (number, line) in text.lines().enumerate() {
            if found(&code(line)) {
                places.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    places
}

fn assert_none(places: Vec<String>, rule: &str) {
    assert!(places.is_empty(), "{rule}:\n  {}", places.join("\n  "));
}

/// Names under `[dependencies]` of a member; those of tests do not count.
fn dependencies(member: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).expect(member);
    let mut section = String::new();
    let mut names = BTreeSet::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
        } else if section == "dependencies" {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            names.insert(line[..end].to_owned());
        }
    }
    assert!(!names.is_empty(), "{member} has no dependencies: is the manifest read rightly?");
    names
}

/// The packages of `Cargo.lock`, each with the names of those it needs. Those of a member include its tests'.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in lock.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("name = ") {
            name = found.trim_matches('"').to_owned();
            packages.entry(name.clone()).or_default();
        } else if line.starts_with('"') {
            let needed = line.trim_matches([',', '"']).split(' ').next().unwrap_or_default();
            packages.entry(name.clone()).or_default().insert(needed.to_owned());
        }
    }
    packages
}

/// All packages that `package` cannot be built and tested without.
fn reachable(package: &str) -> BTreeSet<String> {
    let packages = locked();
    let mut reached = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(name) = open.pop() {
        let needed = packages.get(&name).unwrap_or_else(|| panic!("{name} is not in Cargo.lock"));
        open.extend(needed.iter().filter(|needed| reached.insert((*needed).clone())).cloned());
    }
    reached
}

/// Crates that stand in `Cargo.lock` twice, since crates that we use do not agree on one.
const TWICE: &[(&str, &str)] = &[
    ("base64", "k8s-openapi and tower-http; kube-client, pem and serde-saphyr"),
    ("bitflags", "smoltcp, of tests; rustix and others"),
    ("derive_more", "netlink-packet-netfilter; kube"),
    ("getrandom", "ring; tempfile and others"),
    ("syn", "macros of derive_more, tracing and zerocopy; those of serde and others"),
    ("windows-sys", "for another system: not built"),
];

#[test]
fn each_dependency_has_one_version() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let mut seen = BTreeSet::new();
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = "));
    let twice: BTreeSet<_> = names.map(|name| name.trim_matches('"')).filter(|name| !seen.insert(*name)).collect();
    assert_eq!(twice, TWICE.iter().map(|(name, _)| *name).collect(), "other crates than those known stand there twice");
    for member in ["engine", "control", "cni-shim"] {
        let direct = dependencies(member);
        let both = TWICE.iter().find(|(name, _)| direct.contains(*name));
        assert_eq!(both, None, "{member} names a crate of two versions");
    }
}

#[test]
fn the_plugin_depends_on_nothing_of_ours() {
    let names = dependencies("cni-shim");
    assert_eq!(names, BTreeSet::from(["serde".to_owned(), "serde_json".to_owned()]), "cni-shim is std and serde only");
}

#[test]
fn the_engine_knows_neither_control_nor_kubernetes_nor_an_executor() {
    let reached = reachable("millrace-engine");
    assert!(reached.contains("libc"), "Cargo.lock is read wrongly");
    for foreign in ["millrace-control", "millrace-cni", "k8s-openapi", "kube", "tokio", "axum", "rtnetlink", "tracing"]
    {
        assert!(!reached.contains(foreign), "the engine reaches {foreign}");
    }
    let direct = dependencies("engine");
    for foreign in ["log", "serde", "anyhow", "clap"] {
        assert!(!direct.contains(foreign), "the engine depends on {foreign}");
    }
}

#[test]
fn control_stands_on_engine_and_plugin() {
    let names = dependencies("control");
    assert!(names.contains("millrace-engine") && names.contains("millrace-cni"));
    assert!(!names.contains("millrace-tests") && !names.contains("millrace-benches"));
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let allowed: BTreeSet<&str> = UNSAFE_FILES.iter().map(|(path, _)| *path).collect();
    let allows = |line: &str| has_word(line, "unsafe_code") && !line.contains("forbid");
    let is_unsafe = |line: &str| has_word(line, "unsafe") || allows(line);
    assert_none(places(|path| !allowed.contains(path), is_unsafe), "unsafe outside its files");
    for (path, why) in UNSAFE_FILES {
        assert!(!places(|other| other == *path, is_unsafe).is_empty(), "{path} ({why}) needs no unsafe any more");
    }
}

#[test]
fn no_source_file_is_too_long() {
    let mut files = sources();
    TESTS.iter().for_each(|folder| collect(&root(), folder, &mut files));
    let long = files.into_iter().map(|(path, text)| (path, text.lines().count()));
    let long: Vec<String> =
        long.filter(|(_, lines)| *lines > FILE_LINES).map(|(path, lines)| format!("{path}: {lines} lines")).collect();
    assert_none(long, "more than one idea in a file");
}

#[test]
fn every_source_file_says_what_it_is() {
    let silent = |text: &str| !text.lines().take(4).any(|line| line.starts_with("//!"));
    let files = sources().into_iter().filter(|(path, _)| !path.contains("tests"));
    let silent: Vec<String> = files.filter(|(_, text)| silent(text)).map(|(path, _)| path).collect();
    assert_none(silent, "no module header");
}

#[test]
fn kubernetes_types_stop_at_observe() {
    let outside = |path: &str| !path.starts_with("control/src/observe");
    let types = |line: &str| has_word(line, "k8s_openapi");
    assert_none(places(outside, types), "Kubernetes types outside control/src/observe");
    assert!(!places(|path| !outside(path), types).is_empty(), "observe uses none: is the rule out of date?");
    // The client's place is the store that speaks to a server; it hands documents on.
    let elsewhere = |path: &str| !path.starts_with("control/src/store/api_server");
    let client = |line: &str| has_word(line, "kube");
    assert_none(places(elsewhere, client), "the Kubernetes client outside control/src/store/api_server");
    assert!(!places(|path| !elsewhere(path), client).is_empty(), "nobody uses the client: is the rule out of date?");
}

#[test]
fn nothing_is_left_to_do() {
    let unfinished = |line: &str| has_word(line, "todo!") || line.contains("todo!(") || line.contains("unimplemented!");
    assert_none(places(|_| true, unfinished), "unfinished code");
}

/// The three doors of the frame memory towards the kernel.
#[test]
fn frames_are_lent_only_by_ports() {
    let outside = |path: &str| !path.starts_with("engine/src/port/") && path != "engine/src/packet/frame_memory.rs";
    let lends = |line: &str| line.contains(".lend(") || line.contains(".reclaim(") || line.contains("memory.umem()");
    assert_none(places(outside, lends), "frames lent outside engine/src/port");
    assert!(!places(|path| !outside(path), lends).is_empty(), "nobody lends frames: is the rule out of date?");
}

#[test]
fn comments_and_strings_are_not_code() {
    assert_eq!(code("let a = 1; // unsafe"), "let a = 1; ");
    assert_eq!(code(r#"call("unsafe { }", b)"#), "call(, b)");
    assert!(has_word("unsafe { x }", "unsafe") && !has_word("unsafe_op", "unsafe"));
}
