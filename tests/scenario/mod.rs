//! Scenario texts: given objects, when packets or changes, then everything that happens.
//!
//! ```text
//! # What the scenario shows, in a sentence.
//! given  node a vtep 192.0.2.1
//!        node b vtep 192.0.2.2
//!        block 10.2.0.0/24 on b
//!        pod client on a 10.1.0.5
//! when   client sends tcp syn 10.1.0.5:40000 > 10.2.0.7:80
//! then   trace a   admit default/client in segment pods | route ...
//!        uplink a  vxlan vni 1 192.0.2.1 > 192.0.2.2 | tcp syn 10.1.0.5:40000 > 10.2.0.7:80
//!        moved a   flow_cache.inserted +1, flow_cache.miss +1
//! ```
//! `then` lists every trace, every frame that leaves a switch and every counter that moves, in order; what is not
//! listed must not happen. A text may go on with further `when` and `then`. Lines of `given` may also stand under
//! `when`, as changes. The words are explained in `given.rs` (objects), `world.rs` (events) and `packet_text.rs`.
//!
//! With `MILLRACE_WRITE_SCENARIOS` set, each text's `then` is written anew from what happens: to be read and
//! judged line by line before it is committed.

pub(crate) mod given;
pub(crate) mod packet_text;
mod world;

use std::fmt::Write as _;
use std::path::Path;

use world::World;

/// A scenario text, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    /// Comment lines at the top.
    pub about: Vec<String>,
    /// Objects and pods at the start.
    pub given: Vec<String>,
    /// What is done and what must happen, in order.
    pub steps: Vec<Step>,
}

/// Something done and all that must come of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What is done, a line each.
    pub when: Vec<String>,
    /// What must happen, a line each.
    pub then: Vec<String>,
}

enum Section {
    Given,
    When,
    Then,
}

impl Scenario {
    /// Takes a text apart.
    ///
    /// # Errors
    /// The line that belongs nowhere.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut scenario, mut section) = (Self::default(), None);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                if section.is_none() && !line.is_empty() {
                    scenario.about.push(line.to_owned());
                }
                continue;
            }
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let mut content = rest;
            match word {
                "given" => section = Some(Section::Given),
                "when" => {
                    if !matches!(section, Some(Section::When)) {
                        scenario.steps.push(Step::default());
                    }
                    section = Some(Section::When);
                }
                "then" => section = Some(Section::Then),
                _ => content = line,
            }
            let words = content.split_whitespace().collect::<Vec<_>>().join(" ");
            match (&section, scenario.steps.last_mut()) {
                // Nothing happens.
                (Some(Section::Then), Some(_)) if words.is_empty() => {}
                (Some(Section::Given), None) => scenario.given.push(words),
                (Some(Section::When), Some(step)) => step.when.push(words),
                (Some(Section::Then), Some(step)) => step.then.push(words),
                _ => return Err(format!("line {}: {line:?} belongs to no section", number + 1)),
            }
        }
        if scenario.steps.is_empty() { Err("nothing is done".to_owned()) } else { Ok(scenario) }
    }

    /// Runs it: the same scenario with the `then` that really came.
    ///
    /// # Errors
    /// A line that cannot be understood.
    pub fn run(&self) -> Result<Self, String> {
        let mut world = World::new(&self.given)?;
        let mut happened = self.clone();
        for step in &mut happened.steps {
            step.then = world.perform(&step.when)?;
        }
        Ok(happened)
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.about.iter().map(|line| format!("{line}\n")).collect::<String>();
        write_section(&mut text, "given", &self.given);
        for step in &self.steps {
            write_section(&mut text, "when", &step.when);
            write_section(&mut text, "then", &step.then);
        }
        text
    }
}

fn write_section(text: &mut String, name: &str, lines: &[String]) {
    for (number, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "{:<6} {line}", if number == 0 { name } else { "" });
    }
    if lines.is_empty() {
        let _ = writeln!(text, "{name}");
    }
}

/// Reads a text, runs it and compares.
///
/// # Errors
/// What happened and was not listed, or was listed and did not happen.
pub fn check(file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let scenario = Scenario::parse(&text)?;
    let happened = scenario.run()?;
    if std::env::var_os("MILLRACE_WRITE_SCENARIOS").is_some() {
        return std::fs::write(file, happened.text()).map_err(|error| error.to_string());
    }
    let mut report = String::new();
    for (step, real) in scenario.steps.iter().zip(&happened.steps).filter(|(step, real)| step != real) {
        let _ = writeln!(report, "when {}", step.when.join("\n     "));
        difference(&mut report, &step.then, &real.then);
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

/// Lines only listed get a minus, lines that only happened a plus; equal lines at either end stand once.
fn difference(report: &mut String, listed: &[String], happened: &[String]) {
    let same_start = listed.iter().zip(happened).take_while(|(one, other)| one == other).count();
    let (listed_rest, happened_rest) = (&listed[same_start..], &happened[same_start..]);
    let ends = listed_rest.iter().rev().zip(happened_rest.iter().rev());
    let same_end = ends.take_while(|(one, other)| one == other).count();
    let mut mark = |sign: char, lines: &[String]| {
        for line in lines {
            let _ = writeln!(report, "  {sign} {line}");
        }
    };
    mark(' ', &listed[..same_start]);
    mark('-', &listed_rest[..listed_rest.len() - same_end]);
    mark('+', &happened_rest[..happened_rest.len() - same_end]);
    mark(' ', &listed_rest[listed_rest.len() - same_end..]);
}
