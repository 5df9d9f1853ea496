//! The page for newcomers to the standalone switch, `docs/standalone.md`: its five minutes are run as they stand there.
//!
//! The page's commands become one script, its files are written where it says so, and its tables are compared with what the
//! program prints. It runs with mounts and processes of its own, so that the names of its namespaces meet nobody
//! else's and everything ends with it. Where the machine has no `ping`, this program stands in for it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use millrace_engine::port::namespace::NamespaceHandle;

use crate::directory::Directory;
use crate::ping::ping;
use crate::traffic::Endpoint;

/// Whom to ping, where this program stands in for `ping`.
const PING: &str = "MILLRACE_TEST_PING";
/// Stands before what the program prints in the output of the script.
const MARK: &str = "== ";

/// What a block of the page is.
#[derive(Debug, PartialEq)]
enum Block {
    Commands(String),
    Configuration(String),
    Objects(String),
    /// What the last command prints.
    Answer(String),
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/standalone.md");
    fs::read_to_string(path).expect("the page")
}

/// The indented blocks of the section.
fn blocks(page: &str) -> Vec<Block> {
    let section =
        page.split("## Five minutes").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let mut texts: Vec<String> = Vec::new();
    let mut open = false;
    for line in section.lines() {
        match line.strip_prefix("       ") {
            Some(line) if open => *texts.last_mut().expect("a block") += &format!("{line}\n"),
            Some(line) => texts.push(format!("{line}\n")),
            None => {}
        }
        open = line.starts_with("       ");
    }
    texts.into_iter().map(block).collect()
}

fn block(text: String) -> Block {
    match text.split_whitespace().next() {
        Some("apiVersion:") => Block::Objects(text),
        Some("Segment") => Block::Answer(text),
        Some("node") => Block::Configuration(text),
        _ => Block::Commands(text),
    }
}

/// The page as a script.
fn script(blocks: &[Block]) -> String {
    let mut script = "set -e\n".to_owned();
    for block in blocks {
        let file = |name: &str, text: &str| format!("cat > {name} <<'END'\n{text}END\n");
        script += &match block {
            // What the program prints about the switch is told from everything else.
            Block::Commands(text) => text.replace("millrace show", &format!("echo '{MARK}'; millrace show")),
            Block::Configuration(text) => file("agent.toml", text),
            Block::Objects(text) => file("objects/lan.yaml", text),
            Block::Answer(_) => String::new(),
        };
    }
    script + "kill $!; wait\n"
}

/// A row as it is the same each time: without MAC addresses and ages.
fn comparable(row: &str) -> Vec<&str> {
    let is_mac = |word: &&str| word.len() == 17 && word.matches(':').count() == 5;
    let words: Vec<&str> = row.split_whitespace().filter(|word| !is_mac(word)).collect();
    // The age is two words.
    let is_age = words.last().is_some_and(|unit| ["ms", "s", "min", "h"].contains(unit));
    let end = if is_age { words.len() - 2 } else { words.len() };
    words[..end].to_vec()
}

fn rows(table: &str) -> Vec<Vec<&str>> {
    let mut rows: Vec<_> = table.lines().filter(|line| !line.trim().is_empty()).map(comparable).collect();
    rows.sort();
    rows.dedup();
    rows
}

fn programs(directory: &Directory) -> PathBuf {
    let path = directory.file("bin");
    fs::create_dir_all(&path).expect("directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_millrace"), path.join("millrace")).expect("link");
    let has_ping = Command::new("ping").arg("-V").output().is_ok_and(|output| output.status.success());
    if !has_ping {
        let own = std::env::current_exe().expect("own path");
        let text = format!("#!/bin/sh\nexport {PING}=$3\nexec {}\n", own.display());
        fs::write(path.join("ping"), text).expect("written");
        fs::set_permissions(path.join("ping"), fs::Permissions::from_mode(0o755)).expect("executable");
    }
    path
}

/// Pings whom the page wants pinged, three times, if this program was started for that.
pub(crate) fn as_ping() -> Option<ExitCode> {
    let to: IpAddr = std::env::var(PING).ok()?.parse().ok()?;
    let own = NamespaceHandle::open("/proc/self/ns/net").ok()?;
    let here = Endpoint { name: "here".to_owned(), namespace: own, addresses: Vec::new() };
    let came = (0..3).filter(|_| ping(&here, to, 56, Duration::from_secs(1))).count();
    Some(if came > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn the_five_minutes_of_the_standalone_switch_are_as_written() {
    crate::root_tests::needs_program("ip", "iproute2");
    crate::root_tests::needs_program("ethtool", "ethtool");
    let blocks = blocks(&page());
    let answers: Vec<&str> = blocks
        .iter()
        .filter_map(|block| match block {
            Block::Answer(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(answers.len(), 2, "{blocks:#?}");
    let directory = Directory::create();
    let path = programs(&directory);
    let work = directory.file("work");
    fs::create_dir_all(&work).expect("directory");
    fs::write(work.join("page.sh"), script(&blocks)).expect("written");
    // The page's files and the names of namespaces are in /run: an empty one of its own.
    let inside = "mount -t tmpfs none /run && exec timeout 60 bash page.sh";
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inside])
        .current_dir(&work)
        .env("PATH", format!("{}:{}", path.display(), std::env::var("PATH").unwrap_or_default()))
        .output()
        .expect("unshare; apt-get install util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}\n{}", script(&blocks));
    let printed: Vec<&str> = said.split(&format!("{MARK}\n")).skip(1).collect();
    assert_eq!(printed.len(), answers.len(), "{said}");
    for (printed, expected) in printed.into_iter().zip(answers) {
        // What the page says is there; it may leave rows out.
        let printed = rows(printed);
        let missing: Vec<_> = rows(expected).into_iter().filter(|row| !printed.contains(row)).collect();
        assert!(missing.is_empty(), "the page has rows {missing:?}, and the program printed {printed:?}");
    }
}
