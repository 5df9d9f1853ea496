//! `millrace replay` as operators call it: processes of their own, with and without vector instructions, compared byte for
//! byte; other objects and stored runs set against each other; the example of `docs/replay.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millrace-replay-command-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("directory");
        Self(path)
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(&self.0).expect("directory").map(|entry| entry.expect("entry").path());
        let name = |path: &Path| path.file_name().expect("name").to_string_lossy().into_owned();
        entries.map(|path| (name(&path), fs::read(&path).expect("file"))).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn millrace(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.current_dir(root()).args(arguments).output().expect("ran")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The command line for a golden capture made from a text.
fn of_case(name: &str) -> Vec<String> {
    let folder = captures().join(name);
    let mut arguments = vec!["replay".to_owned(), "--node".to_owned(), "a".to_owned(), "--objects".to_owned()];
    arguments.push(folder.join("objects").display().to_string());
    for entry in fs::read_dir(folder.join("in")).expect("captures") {
        let path = entry.expect("entry").path();
        let port = path.file_stem().expect("name").to_string_lossy().replacen('_', "/", 1);
        arguments.extend(["--in".to_owned(), format!("{port}={}", path.display())]);
    }
    arguments
}

/// Runs one golden capture with further options; what it printed, and the files it wrote.
fn run(case: &str, further: &[&str], out: &str) -> (String, BTreeMap<String, Vec<u8>>) {
    let directory = Directory::new(&format!("{case}-{out}"));
    let path = directory.0.display().to_string();
    let arguments = of_case(case);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--out", &path]);
    arguments.extend(further);
    let output = millrace(&arguments);
    assert!(output.status.success(), "{case}: {}", text(&output.stderr));
    (text(&output.stdout), directory.files())
}

/// Captures whose packets are cut, summed, hashed, translated and put into tunnels.
const CASES: &[&str] = &[
    "across-nodes-ipv4",
    "across-nodes-ipv6",
    "egress",
    "fragments",
    "gso-unit",
    "ipv6-underlay",
    "segments-joined",
    "service-balancing",
    "service-cluster-ip",
    "service-node-port",
];

/// Processes of their own have other addresses in memory and other random numbers; one has no vector instructions either.
#[test]
fn each_process_and_each_kernel_gives_the_same_bytes() {
    for case in CASES {
        let first = run(case, &[], "first");
        assert!(first.0.lines().count() > 0 && first.1.len() > 1, "{case}");
        assert!(run(case, &[], "again") == first, "{case}: another process gives something else");
        assert!(run(case, &["--plain-code"], "plain") == first, "{case}: plain code gives something else");
        assert!(run(case, &["--plain-code", "--workers", "4"], "workers") == first, "{case}: four workers");
    }
}

const CASE: &str = "same-node-ipv4";

#[test]
fn the_same_objects_and_a_run_of_the_same_version_give_no_difference() {
    let objects = captures().join(CASE).join("objects").display().to_string();
    let stored = captures().join(CASE).join("out").display().to_string();
    for (option, value) in [("--against", objects), ("--expect", stored)] {
        let arguments = of_case(CASE);
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend([option, &value]);
        let output = millrace(&arguments);
        let words = text(&output.stdout);
        assert_eq!((output.status.code(), words.starts_with("0 of ")), (Some(0), true), "{option}: {words}");
    }
}

#[test]
fn a_run_that_differs_is_told_packet_by_packet() {
    let directory = Directory::new("stored");
    for entry in fs::read_dir(captures().join(CASE).join("out")).expect("a run") {
        let path = entry.expect("entry").path();
        fs::copy(&path, directory.0.join(path.file_name().expect("name"))).expect("copied");
    }
    let stored = directory.0.display().to_string();
    let arguments = of_case(CASE);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--expect", &stored]);
    // A byte of the last frame that left, as another version might write it.
    let capture = directory.0.join("default_web.pcapng");
    let mut bytes = fs::read(&capture).expect("capture");
    let at = bytes.len() - 12;
    bytes[at] ^= 0xff;
    fs::write(&capture, bytes).expect("written");
    let output = millrace(&arguments);
    let words = text(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{words}");
    assert!(
        words.contains("  stored: the stages say the same\n") && words.contains(" by default/web from byte "),
        "{words}"
    );
    assert!(words.contains("1 of ") && words.contains(" packets has another fate"), "{words}");
    // A run of other captures is no difference but a mistake.
    let fates = directory.0.join("fates.txt");
    let told = fs::read_to_string(&fates).expect("fates").replacen("\n1 0.0", "\n1 9.0", 1);
    fs::write(&fates, told).expect("written");
    let output = millrace(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("it is of other captures"), "{}", text(&output.stderr));
}

/// The commands of `docs/replay.md` print what stands below them.
#[test]
fn the_example_of_the_page_is_what_the_program_prints() {
    let page = fs::read_to_string(root().join("docs/replay.md")).expect("page");
    let mut checked = 0;
    for block in page.split("\n    $ millrace ").skip(1) {
        let lines: Vec<&str> = block.lines().take_while(|line| line.starts_with("    ") || !line.is_empty()).collect();
        let command_lines = lines.iter().take_while(|line| line.ends_with('\\')).count() + 1;
        let command: String =
            lines[..command_lines].iter().map(|line| line.trim_end_matches('\\').to_owned() + " ").collect();
        let expected: Vec<&str> =
            lines[command_lines..].iter().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
        if !command.starts_with("replay ") || command.contains("--out") {
            continue;
        }
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let output = millrace(&arguments);
        let printed = text(&output.stdout);
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "millrace {command}\n{}", text(&output.stderr));
        checked += 1;
    }
    assert!(checked >= 2, "{checked} commands checked");
}

#[test]
fn differences_come_as_a_document_too() {
    let folder = captures().join("policy-changes-live-flows");
    let other = folder.join("objects-2").display().to_string();
    let arguments = of_case("policy-changes-live-flows");
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--against", &other, "-o", "json"]);
    let output = millrace(&arguments);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    let first = &document["differences"][0];
    assert_eq!(
        (first["stage"].as_str(), first["other"]["dropped"][0].as_str()),
        (Some("policy"), Some("policy_ingress"))
    );
    assert_eq!(first["one"]["sent"][0]["port"], "default/web");
    assert!(first["other"]["reason"].as_str().is_some_and(|reason| reason.contains("default/web")), "{first}");
}

#[test]
fn mistakes_on_the_command_line_are_refused() {
    let arguments = of_case(CASE);
    let with = |further: &[&str]| {
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.extend(further);
        millrace(&all).status.code()
    };
    for wrong in [
        &["--change", "1"][..],
        &["--change", "x=y"],
        &["--against", "x", "--out", "y"],
        &["--expect", "x", "--out", "y"],
    ] {
        assert_eq!(with(wrong), Some(2), "{wrong:?}");
    }
    for wrong in
        [&["--against", "/nonexistent"][..], &["--expect", "/nonexistent"], &["--change", "2=/x", "--change", "1=/x"]]
    {
        assert_eq!(with(wrong), Some(1), "{wrong:?}");
    }
}
