//! The runner of tests that need root. Without root each of them is reported as ignored, with the reason: a test that
//! did not run must not look like one that passed, and the built-in harness cannot say so at run time.
//!
//! A test program with this runner has `harness = false` in `Cargo.toml` and lists its tests with [`root_tests!`]. A
//! test that is left out of the list is dead code, which the lints refuse. A test that finds only while it runs that the
//! machine lacks something calls [`not_here`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

/// Why tests are ignored.
const REASON: &str = "needs root to make network namespaces";

/// Why a test that had begun was not run.
struct NotHere(String);

/// Ends the test that calls it: it is reported as ignored, with the reason.
#[allow(dead_code, reason = "not every test program needs what a machine may lack")]
pub(crate) fn not_here(reason: impl Into<String>) -> ! {
    // Unlike a panic it says nothing by itself.
    resume_unwind(Box::new(NotHere(reason.into())))
}

/// Ends the test that calls it where a program is not installed: it is reported as ignored, with the command that installs it.
#[allow(dead_code, reason = "not every test program needs programs of others")]
pub(crate) fn needs_program(name: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
        not_here(format!("needs the program {name}: apt-get install {package}"));
    }
}

/// Ends the test that calls it where the kernel is older: it is reported as ignored, with the reason.
#[allow(dead_code, reason = "not every test program needs a new kernel")]
pub(crate) fn needs_kernel(major: u32, minor: u32, what: &str) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok());
    let running: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if running < (major, minor) {
        not_here(format!("needs Linux {major}.{minor} for {what}; this is {release}"));
    }
}

/// One test.
pub(crate) struct RootTest {
    /// As the filter on the command line knows it.
    pub(crate) name: &'static str,
    /// Panics if what it checks does not hold.
    pub(crate) run: fn(),
    /// Run only with `--ignored` or `--include-ignored`: measurements, and what other tests start.
    pub(crate) on_demand: bool,
}

/// Runs the tests that the command line asks for. `threads` at a time, unless it says otherwise there.
pub(crate) fn run(tests: Vec<RootTest>, threads: Option<usize>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(threads);
    let root = rustix::process::geteuid().is_root();
    let trial = |RootTest { name, run, on_demand }: RootTest| {
        let run = move || {
            if !root {
                return Ok(Completion::ignored_with(REASON));
            }
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(()) => Ok(Completion::Completed),
                Err(payload) => match payload.downcast::<NotHere>() {
                    Ok(reason) => Ok(Completion::ignored_with(reason.0)),
                    Err(payload) => resume_unwind(payload),
                },
            }
        };
        Trial::ignorable_test(name, run).with_ignored_flag(on_demand)
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// The `main` of a test program: the tests of every run, and those that run only when asked for.
#[allow(unused_macros, reason = "a test program may make its list itself")]
macro_rules! root_tests {
    (every run [$($test:ident),* $(,)?] $(, on demand [$($rare:ident),* $(,)?])? $(,)?) => {
        fn main() -> std::process::ExitCode {
            let every_run: &[(&'static str, fn())] = &[$((stringify!($test), $test)),*];
            let on_demand: &[(&'static str, fn())] = &[$($((stringify!($rare), $rare)),*)?];
            let listed = |on_demand| move |&(name, run): &_| root_tests::RootTest { name, run, on_demand };
            let tests = every_run.iter().map(listed(false)).chain(on_demand.iter().map(listed(true)));
            root_tests::run(tests.collect(), None)
        }
    };
}
