//! All that a node's kernel holds of its network, as text: to compare before and after.
//!
//! Left out is what the kernel itself makes and forgets: neighbours it met (all but permanent and managed ones), and the
//! count of tracked connections.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_control::kernel::NamespaceHandle;

const SETTINGS: &str = "/proc/sys/net";
const PATIENCE: Duration = Duration::from_secs(10);

/// What `ip` is asked; its answers hold links with their programs, addresses, routes of all tables, rules.
const QUESTIONS: [&[&str]; 6] = [
    &["-d", "link"],
    &["addr"],
    &["-4", "route", "show", "table", "all"],
    &["-6", "route", "show", "table", "all"],
    &["-4", "rule"],
    &["-6", "rule"],
];

/// Lines of text, each with what it is of.
pub(crate) type State = BTreeSet<String>;

/// What a program prints in the namespace; nothing if it is not installed.
pub(crate) fn run(namespace: &NamespaceHandle, program: &str, words: &[&str]) -> String {
    let output = namespace.enter(|| Command::new(program).args(words).output()).expect("entered");
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// The state once it does not change any more: addresses are no longer tentative, nothing is on its way.
pub(crate) fn settled(namespace: &NamespaceHandle) -> State {
    let end = Instant::now() + PATIENCE;
    let mut last = read(namespace);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = read(namespace);
        let tentative = now.iter().any(|line| line.contains("tentative"));
        if (now == last && !tentative) || Instant::now() >= end {
            return now;
        }
        last = now;
    }
}

/// What one has and the other has not.
pub(crate) fn differences(before: &State, after: &State) -> Vec<String> {
    let gone = before.difference(after).map(|line| format!("- {line}"));
    let new = after.difference(before).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

fn read(namespace: &NamespaceHandle) -> State {
    let mut state = State::new();
    for words in QUESTIONS {
        let answer = run(namespace, "ip", words);
        // The order is part of what rules mean.
        let numbered = |(number, line): (usize, &str)| match words[words.len() - 1] {
            "rule" => format!("ip {} {number}: {}", words.join(" "), line.trim()),
            _ => format!("ip {}: {}", words.join(" "), line.trim()),
        };
        state.extend(answer.lines().enumerate().map(numbered));
    }
    let neighbours = run(namespace, "ip", &["-d", "neigh"]);
    let kept = neighbours.lines().filter(|line| line.contains("PERMANENT") || line.contains("managed"));
    // The state of a managed one changes by itself.
    state.extend(kept.filter_map(|line| Some(format!("neighbour: {}", line.rsplit_once(' ')?.0))));
    state.extend(run(namespace, "nft", &["list", "ruleset"]).lines().map(|line| format!("nft: {line}")));
    let settings = namespace.enter(|| {
        let mut found = State::new();
        read_settings(Path::new(SETTINGS), &mut found);
        found
    });
    state.extend(settings.expect("entered"));
    state
}

fn read_settings(directory: &Path, found: &mut State) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_settings(&path, found);
        } else if !path.ends_with("nf_conntrack_count") {
            // Some can only be written.
            let value = fs::read_to_string(&path).unwrap_or_default();
            found.insert(format!("{}: {}", path.display(), value.trim()));
        }
    }
}
