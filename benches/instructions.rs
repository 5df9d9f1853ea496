//! Instructions a packet takes, counted by callgrind: the same on a busy machine as on a quiet one, so that a run of CI can say
//! whether a change made the path of a packet longer. They say nothing of memory and little of time.
//!
//! A bench that is asked to (`--instructions`) runs itself under valgrind once for each row, with the row's name
//! after [`COUNTED`]; that process collects within [`counted`] alone. What a processor offers beyond AVX2 is not offered by
//! valgrind, so wider kernels are not what is counted.
//! Figures are kept in `instructions.csv`. A row that exceeds its figure by more than [`ALLOWED`] ends the bench with exit code 1;
//! `MILLRACE_WRITE_INSTRUCTIONS=1` writes what was counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Asks a bench to count.
const INSTRUCTIONS: &str = "--instructions";
/// Asks for one row; its name follows.
const COUNTED: &str = "--counted";
/// What is kept.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.csv");
/// How much more than kept a row may take. Housekeeping goes by the clock, which differs from run to run.
const ALLOWED: f64 = 1.03;

/// The row that this process is asked to count.
pub(crate) fn row() -> Option<String> {
    std::env::args().skip_while(|argument| argument != COUNTED).nth(1)
}

/// Whether instructions are asked for.
pub(crate) fn are_asked_for() -> bool {
    std::env::args().any(|argument| argument == INSTRUCTIONS)
}

/// Does what is counted. The name is what callgrind knows it by.
#[inline(never)]
pub(crate) fn counted(run: &mut dyn FnMut()) {
    run();
}

/// Counts every row of a bench and compares with what is kept.
pub(crate) fn compare(bench: &str, rows: impl IntoIterator<Item = String>, packets: usize) {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("{bench}: NOT COUNTED, needs valgrind: apt-get install valgrind");
        return;
    }
    let mut kept = kept();
    let mut longer = 0;
    for row in rows {
        let each = count(&row) / packets as f64;
        let key = format!("{bench},{row}");
        let before = kept.get(&key).copied();
        let verdict = match before {
            Some(before) if each > before * ALLOWED => "LONGER",
            Some(before) if each * ALLOWED < before => "shorter: write it down",
            Some(_) => "as kept",
            None => "new",
        };
        longer += usize::from(verdict == "LONGER");
        println!("{bench} {row:16} {each:8.1} instructions a packet, kept {:8.1}: {verdict}", before.unwrap_or(0.0));
        kept.insert(key, each);
    }
    if std::env::var_os("MILLRACE_WRITE_INSTRUCTIONS").is_some() {
        let lines: String = kept.iter().map(|(key, each)| format!("{key},{each:.1}\n")).collect();
        std::fs::write(KEPT, lines).expect("written");
    } else if longer > 0 {
        eprintln!("{bench}: {longer} rows take more instructions than kept in {}", Path::new(KEPT).display());
        std::process::exit(1);
    }
}

/// Figures by bench and row.
fn kept() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(KEPT).unwrap_or_default();
    let line = |line: &str| line.rsplit_once(',').map(|(key, each)| (key.to_owned(), each.parse().expect("a number")));
    text.lines().filter_map(line).collect()
}

/// Instructions within [`counted`] of a process that is asked for this row.
fn count(row: &str) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*instructions*counted*"])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--bench", COUNTED, row])
        .output()
        .expect("valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{row}: {}\n{said}", output.status);
    let line = said.lines().find_map(|line| line.split_once("Collected : ")).expect("callgrind's sum");
    line.1.trim().parse().expect("a number")
}
