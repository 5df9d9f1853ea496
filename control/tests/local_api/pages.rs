//! What the pages say to type is there: each `millrace ...` of the documentation is a command, with those options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pages with commands for people.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let entries = fs::read_dir(root.join("docs")).expect("the pages").map(|entry| entry.expect("entry").path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "md")).chain([root.join("README.md")]).collect()
}

/// Words behind each `millrace` that stands in a span of code or in an indented line, up to what ends a command.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let spans = text.split('`').skip(1).step_by(2);
    let lines = text.lines().filter(|line| line.starts_with("    "));
    let mut commands = Vec::new();
    for code in spans.chain(lines).filter(|code| code.contains("millrace ")) {
        let words: Vec<&str> = code.split_whitespace().collect();
        for start in words.iter().enumerate().filter(|(_, word)| **word == "millrace").map(|(at, _)| at + 1) {
            let command = words[start..].iter().take_while(|word| !["&", "|", ";", "millrace"].contains(word));
            commands.push(command.copied().collect());
        }
    }
    commands
}

/// The command, what it is about if it has several kinds, and the options.
fn split<'a>(words: &[&'a str]) -> Option<(&'a str, Option<&'a str>, Vec<&'a str>)> {
    let is_name = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase());
    let command = words.first().copied().filter(is_name)?;
    let has_kinds = ["show", "check", "policy"].contains(&command);
    let kind = words[1..].iter().copied().find(is_name).filter(|_| has_kinds);
    let options = words.iter().filter(|word| word.starts_with("--"));
    Some((command, kind, options.map(|word| word.trim_end_matches([',', '.', ']', ')'])).collect()))
}

fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace")).args(words).arg("--help").output().expect("the program");
    assert!(output.status.success(), "the pages speak of `millrace {}`", words.join(" "));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn commands_of_the_pages_exist_with_their_options() {
    let mut wanted: BTreeMap<(String, Option<String>), BTreeSet<String>> = BTreeMap::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for (command, kind, options) in commands(&text).iter().filter_map(|words| split(words)) {
            let known = wanted.entry((command.to_owned(), kind.map(str::to_owned))).or_default();
            known.extend(options.into_iter().map(str::to_owned));
        }
    }
    assert!(wanted.len() > 10, "{wanted:?}");
    for ((command, kind), options) in wanted {
        let words: Vec<&str> = std::iter::once(command.as_str()).chain(kind.as_deref()).collect();
        if let Some(kind) = &kind {
            assert!(help(&words[..1]).contains(kind.as_str()), "the pages speak of {kind} of `millrace {command}`");
        }
        let text = help(&words);
        for option in options {
            assert!(text.contains(&option), "the pages speak of {option} of `millrace {}`", words.join(" "));
        }
    }
}
