//! Runs every text in `scenarios/` as a test of its own; see `millrace_tests::scenario` for the words.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use millrace_tests::scenario;

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the directory of scenarios");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "scenario"));
    files.sort();
    files
}

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let trials = files(&directory).into_iter().map(|file| {
        let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Trial::test(name, move || scenario::check(&file).map_err(|report| Failed::from(format!("\n{report}"))))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
