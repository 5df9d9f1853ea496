//! One list of layer-2 and VXLAN scenarios, with three switches at the other end: a Linux bridge with the kernel's VXLAN
//! devices, Open vSwitch in user space, and another Millrace.
//!
//! ```text
//!  guests n1 n10 nt - Millrace --wire (VLANs 1 untagged, 10, 20)--- other end - guests f1 f10 ft
//!   (memory ports)            `--up0  (VNIs 1, 4095, 16777215)--'
//! ```
//! Both switches' ends of the two wires are veth pairs between namespaces of this test; Millrace takes its ends by
//! AF_XDP. A frame must arrive byte for byte where the list says, and nowhere else. The table is printed:
//! `cargo test -p millrace-tests --test interop -- --nocapture`.
//!
//! Needs root. Open vSwitch is started in a directory of its own and stopped again; where it is not installed its
//! column says so (`apt-get install openvswitch-switch`). A kernel whose bridge was built without VLANs is not asked
//! about them.

mod far;
mod linux;
mod millrace;
mod near;
mod openvswitch;
#[path = "../../../control/tests/support/root_tests.rs"]
#[macro_use]
mod root_tests;
mod scenarios;
mod wires;

use std::panic::{AssertUnwindSafe, catch_unwind};

use far::Far;
use near::Near;
use scenarios::Needs;
use wires::Wires;

/// Makes the other end on its side of the wires; says why it cannot.
type Make = fn(&Wires) -> Result<Box<dyn Far>, String>;

const FAR_ENDS: [(&str, Make); 3] =
    [("Linux bridge", linux::make), ("Open vSwitch", openvswitch::make), ("Millrace", millrace::make)];

/// What came of a line.
enum Outcome {
    Held,
    Failed(String),
    /// The other end has no VLANs.
    WithoutVlans,
}

fn the_same_scenarios_hold_with_every_other_end() {
    let columns = FAR_ENDS.map(|(name, make)| (name, column(name, make)));
    let mut failed = Vec::new();
    println!("\n{:<48} {:<14} {:<14} {:<14}", "scenario", FAR_ENDS[0].0, FAR_ENDS[1].0, FAR_ENDS[2].0);
    for (row, scenario) in scenarios::ALL.iter().enumerate() {
        let cells = columns.each_ref().map(|(_, column)| word(column, row));
        println!("{:<48} {:<14} {:<14} {:<14}", scenario.name, cells[0], cells[1], cells[2]);
        for (name, column) in &columns {
            if let Ok(outcomes) = column
                && let Outcome::Failed(why) = &outcomes[row]
            {
                failed.push(format!("{} with {name}: {why}", scenario.name));
            }
        }
    }
    for (name, column) in &columns {
        match column {
            Err(why) => println!("{name}: NOT RUN: {why}"),
            Ok(outcomes) if outcomes.iter().any(|outcome| matches!(outcome, Outcome::WithoutVlans)) => {
                println!("{name}: VLANs NOT RUN: this kernel's bridge has none (CONFIG_BRIDGE_VLAN_FILTERING)");
            }
            Ok(_) => {}
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn word(column: &Result<Vec<Outcome>, String>, row: usize) -> &'static str {
    match column.as_ref().map(|outcomes| &outcomes[row]) {
        Ok(Outcome::Held) => "ok",
        Ok(Outcome::Failed(_)) => "FAILED",
        Ok(Outcome::WithoutVlans) | Err(_) => "not run",
    }
}

/// All scenarios with one other end; why it was not run, if it cannot.
fn column(name: &str, make: Make) -> Result<Vec<Outcome>, String> {
    let wires = Wires::create();
    let far = make(&wires)?;
    let mut pair = scenarios::Pair { near: Near::create(&wires), far };
    pair.settle();
    let run = |scenario: &scenarios::Scenario| {
        if scenario.needs == Needs::Vlans && !pair.far.has_vlans() {
            return Outcome::WithoutVlans;
        }
        match catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut pair))) {
            Ok(Ok(())) => Outcome::Held,
            Ok(Err(why)) => Outcome::Failed(why),
            Err(_) => Outcome::Failed(format!("panicked with {name}")),
        }
    };
    Ok(scenarios::ALL.iter().map(run).collect())
}

root_tests!(every run [the_same_scenarios_hold_with_every_other_end]);
