//! A test as a process of its own, in mounts, processes and a network of its own.
//!
//! `unshare` makes them and this program is started again inside, with [`TEST`] in its environment. The directories where
//! runtimes keep things by default are empty there, and files of the test lie in memory. When that process ends, well or not,
//! the kernel ends everything it started and takes all mounts and namespaces away. Only control groups have no namespace that would
//! take them along: all that a runtime makes lie under one of the test's own, which is removed here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use super::{PACKAGES, containerd, image, podman, together};
use crate::directory::unique;
use crate::root_tests::{needs_program, not_here};

/// Which test to run.
const TEST: &str = "MILLRACE_ISOLATED_TEST";
/// The control group that everything of the test lies in.
const GROUP: &str = "MILLRACE_ISOLATED_GROUP";
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// Where runtimes keep things by default, beside `/run`.
const KEPT: [&str; 2] = ["/var/lib/cni", "/var/lib/containers"];
/// What the process with number 1 does: it also reaps what others leave. `$0` is this program. Processes have the same numbers in
/// every test, so what is named after them must lie in memory of the test's own: `/dev/shm` too.
const INSIDE: &str = "for place in /run /dev/shm /var/lib/cni /var/lib/containers; do mount -t tmpfs none $place || exit 125; done; \
                      mkdir /run/test; TMPDIR=/run/test timeout --kill-after=5 240 \"$0\"; exit $?";

const TESTS: &[(&str, fn())] = &[
    ("podman", podman::connects_its_containers),
    ("containerd", containerd::connects_its_pods),
    ("share", together::share_a_node),
    ("outlive", together::outlive_the_agent),
    ("failing", together::fail),
];

/// The test that this process was started for, if it was.
pub(crate) fn as_isolated() -> Option<ExitCode> {
    let asked = std::env::var(TEST).ok()?;
    let (_, run) = TESTS.iter().find(|(name, _)| *name == asked)?;
    run();
    Some(ExitCode::SUCCESS)
}

/// The control group of this test, from the root of each hierarchy.
pub(super) fn group() -> String {
    format!("/{}", std::env::var(GROUP).expect("only inside"))
}

/// Runs a test, which must succeed.
pub(super) fn run(test: &str) {
    let output = run_inside(test);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    print!("{said}");
}

/// Runs a test, which must fail, by a panic.
pub(super) fn run_failing(test: &str) {
    let output = run_inside(test);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(101) && errors.contains("meant to fail"), "{}\n{errors}", output.status);
}

/// Runs a test and sees to it that nothing is left of it, however it ends.
fn run_inside(test: &str) -> Output {
    need_runtimes();
    let group = unique("runtimes");
    let made: Vec<&str> = KEPT.into_iter().filter(|place| !Path::new(place).exists()).collect();
    made.iter().for_each(|place| fs::create_dir_all(place).expect("a directory to mount at"));
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INSIDE])
        .arg(std::env::current_exe().expect("own path"))
        .env(TEST, test)
        .env(GROUP, &group)
        .stdin(Stdio::null())
        .output();
    // Another test may use them now: then they are not empty.
    made.iter().for_each(|place| drop(fs::remove_dir(place)));
    let left = remove_groups(&group);
    let output = output.expect("unshare; apt-get install util-linux");
    assert_eq!(left, Vec::<PathBuf>::new(), "processes are left in these control groups");
    output
}

/// Ends the test where something is missing.
fn need_runtimes() {
    for program in ["podman", "runc", "containerd", "ctr"] {
        needs_program(program, PACKAGES);
    }
    if !Path::new(containerd::LOOPBACK_PLUGIN).exists() {
        not_here(format!("needs {}: apt-get install {PACKAGES}", containerd::LOOPBACK_PLUGIN));
    }
    if !image::can_be_made() {
        not_here(format!("needs a busybox without libraries: apt-get install {PACKAGES}"));
    }
}

/// Removes the group in every hierarchy; returns what could not be removed.
fn remove_groups(group: &str) -> Vec<PathBuf> {
    // With version 1 there is one hierarchy for each controller, some of them by two names; with version 2 there is one.
    let hierarchies = fs::read_dir(GROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let places = hierarchies.filter(|path| path.is_dir() && !path.is_symlink()).chain([PathBuf::from(GROUPS)]);
    let groups = places.map(|place| place.join(group)).filter(|path| path.exists());
    groups.filter(|path| remove_group(path).is_err()).collect()
}

fn remove_group(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Control groups below the test's own, as paths of any hierarchy.
pub(super) fn groups_within() -> Vec<String> {
    let group = group();
    let mut all = Vec::new();
    let places = fs::read_dir(GROUPS).expect("control groups").flatten().map(|entry| entry.path());
    for place in places.chain([PathBuf::from(GROUPS)]) {
        let own = place.join(&group[1..]);
        let inside = fs::read_dir(own).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        all.extend(inside.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    }
    all.sort();
    all.dedup();
    all
}
