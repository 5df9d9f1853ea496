//! What fuzzers found stays found: every target's corpus, and a fixed number of mutations of it, without a fuzzer.
//!
//! `MILLRACE_WRITE_CORPUS=1` writes the inputs that targets begin with anew; those that a fuzzer found beside them have
//! names of their own. `MILLRACE_FUZZ_RUNS` says how many mutations each target gets, `MILLRACE_SEED` which. An input of a
//! fuzzer runs alone by `MILLRACE_FUZZ_INPUT=FILE`. Each failure says how to run its input again.

use millrace_tests::fuzzing::{corpus, target};
use millrace_tests::random::Random;

/// Fewest inputs of a corpus.
const INPUTS: usize = 3;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Says what ran when the test panics, and keeps it.
struct Running<'a>(&'a str, &'a [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = std::env::temp_dir().join(format!("millrace-fuzz-{}", self.0));
            let _ = std::fs::write(&file, self.1);
            let (name, file) = (self.0, file.display());
            eprintln!(
                "run it again: MILLRACE_FUZZ_INPUT={file} cargo test -p millrace-tests --test fuzz_corpus {name}"
            );
        }
    }
}

fn holds(name: &str) {
    let target = target(name);
    let run = |bytes: &[u8]| {
        let _running = Running(name, bytes);
        (target.run)(bytes);
    };
    if let Some(file) = std::env::var_os("MILLRACE_FUZZ_INPUT") {
        return run(&std::fs::read(file).expect("the input"));
    }
    if std::env::var_os("MILLRACE_WRITE_CORPUS").is_some() {
        corpus::write_seeds(&target);
    }
    let inputs = corpus::inputs(&target);
    assert!(inputs.len() >= INPUTS, "{} inputs", inputs.len());
    inputs.iter().for_each(|(_, bytes)| run(bytes));
    let (runs, seed) = (number("MILLRACE_FUZZ_RUNS").unwrap_or(target.mutations as u64), number("MILLRACE_SEED"));
    let mut random = Random::new(seed.unwrap_or(1));
    for _ in 0..runs {
        run(&corpus::mutated(&inputs, &mut random));
    }
    println!("{name}: {} inputs, {runs} mutations", inputs.len());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        /// No target is without a test, and none without a program for libFuzzer.
        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert_eq!(millrace_tests::fuzzing::TARGETS.map(|target| target.name), here);
            let manifest = include_str!("../fuzz/Cargo.toml");
            here.iter().for_each(|name| assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}"));
        }
    };
}

targets!(parse node vxlan gso slow_path cached policy flow_cache cni objects captures);
