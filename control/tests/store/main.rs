//! What every store promises, asked of each: the directory, an API server with streaming lists, one without, and the real
//! server that `KUBECONFIG` names, if there is one. Then what only a server can do: fail.
//!
//! The real server needs nothing but `deploy/crds.yaml`, which the suite applies with `kubectl`; it works in the namespace
//! `default`, with names of its own, and takes away what it made.

mod contract;
mod events;
mod faults;
mod worlds;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use worlds::World;

/// A store of one sort, made anew.
type MakeWorld = fn() -> World;

fn main() -> ExitCode {
    let real = std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    let worlds: [(&str, MakeWorld, bool); 4] = [
        ("directory", World::directory, true),
        ("streaming", World::streaming, true),
        ("paging", World::paging, true),
        ("real_server", World::real_server, real),
    ];
    let mut trials = Vec::new();
    for (world, make, runs) in worlds {
        for (name, test) in contract::TESTS {
            let trial = Trial::test(format!("{world}::{name}"), move || {
                test(&make());
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!runs).with_kind(if runs { "" } else { "no KUBECONFIG" }));
        }
    }
    let of_servers = [("faults", faults::TESTS), ("events", events::TESTS)];
    for (file, (name, test)) in of_servers.iter().flat_map(|(file, tests)| tests.iter().map(move |test| (file, test))) {
        trials.push(Trial::test(format!("{file}::{name}"), move || {
            test();
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
