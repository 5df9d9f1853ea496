//! What was asked at the boundary to the host, what was expected and what was seen: a table for people, and a page.
//!
//! `docs/host-boundary.md` has a table for each way an uplink is served. A test compares its own;
//! `MILLRACE_WRITE_DOCS=1` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::traffic::Endpoint;

/// A single loss on a busy machine is no finding.
const TRIES: usize = 3;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    what: String,
    between: String,
    family: &'static str,
    expected: String,
    /// What was seen, by state.
    seen: BTreeMap<&'static str, String>,
}

/// All questions and all states of the agent, each in the order they were first asked in.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    states: Vec<&'static str>,
}

/// Tries until it succeeds; what was wrong the last time.
fn tried(attempt: impl Fn() -> Result<String, String>) -> String {
    let mut seen = attempt();
    for _ in 1..TRIES {
        if seen.is_ok() {
            break;
        }
        seen = attempt();
    }
    seen.unwrap_or_else(|error| error)
}

impl Table {
    /// Asks in both families and notes the answers.
    pub(crate) fn ask(
        &mut self,
        state: &'static str,
        what: &str,
        expected: &str,
        ends: (&Endpoint, &Endpoint),
        case: impl Fn(&Endpoint, &Endpoint, bool) -> Result<String, String>,
    ) {
        let between = format!("{} to {}", ends.0.name, ends.1.name);
        for ipv4 in [true, false] {
            self.note(state, (what, &between, ipv4), expected, tried(|| case(ends.0, ends.1, ipv4)));
        }
    }

    fn note(&mut self, state: &'static str, (what, between, ipv4): (&str, &str, bool), expected: &str, seen: String) {
        if !self.states.contains(&state) {
            self.states.push(state);
        }
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let same = |row: &&mut Row| (row.what.as_str(), row.between.as_str(), row.family) == (what, between, family);
        if let Some(row) = self.rows.iter_mut().find(same) {
            row.seen.insert(state, seen);
            return;
        }
        let (what, between, expected) = (what.to_owned(), between.to_owned(), expected.to_owned());
        self.rows.push(Row { what, between, family, expected, seen: BTreeMap::from([(state, seen)]) });
    }

    /// Answers in all.
    pub(crate) fn answers(&self) -> usize {
        self.rows.iter().map(|row| row.seen.len()).sum()
    }

    /// Questions whose answer was not the expected one, a line each.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let wrong = |row: &Row| {
            let others = row.seen.iter().filter(|(_, seen)| **seen != row.expected);
            let line = |(state, seen): (&&str, &String)| {
                format!(
                    "{state}: {}, {}, {}: expected {}, seen {seen}",
                    row.what, row.between, row.family, row.expected
                )
            };
            others.map(line).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(wrong).collect()
    }

    /// The table, as Markdown has it.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("| what | from, to | | expected | {} |\n", self.states.join(" | "));
        text.push_str(&"|---".repeat(4 + self.states.len()));
        text.push_str("|\n");
        for Row { what, between, family, expected, seen } in &self.rows {
            let told = self.states.iter().map(|state| seen.get(state).map_or("", String::as_str));
            let seen = told.collect::<Vec<_>>().join(" | ");
            writeln!(text, "| {what} | {between} | {family} | {expected} | {seen} |").expect("a string takes all");
        }
        text
    }

    /// Compares the page's table under the heading `heading` with this one, or writes it if asked to.
    pub(crate) fn hold(&self, heading: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/host-boundary.md");
        let page = fs::read_to_string(&path).expect("docs/host-boundary.md");
        let begin = page.find(&format!("## {heading}\n")).expect("the page has the heading");
        let table = begin + page[begin..].find("| what").expect("a table");
        let end = page[table..].find("\n\n").map_or(page.len(), |length| table + length + 1);
        let expected = format!("{}{}{}", &page[..table], self.text(), &page[end..]);
        if std::env::var_os("MILLRACE_WRITE_DOCS").is_some_and(|value| value == "1") {
            fs::write(&path, &expected).expect("written");
        } else {
            assert_eq!(page, expected, "docs/host-boundary.md does not say what was seen");
        }
    }
}
