//! One list of layer-2 and VXLAN scenarios, with three switches at the other end: a Linux bridge with the kernel's VXLAN
//! devices, Open vSwitch in user space, and another Millrace; over an underlay of IPv4 and over one of IPv6.
//!
//! ```text
//!  guests n1 n10 nt nq - Millrace --wire (VLANs 1 untagged, 10, 20)------------- other end - guests f1 f10 ft fq
//!   (memory ports)         |    `---swire (service VLAN 40)--------------------'   |
//!                          `----up0 -------------- hub -------------------- up0 ---'   VNIs 1, 4095, 16777215, 5020
//!                                       probe -----' `----up0 - a third Millrace - guest t33            VNI 5020
//! ```
//! Both switches' ends of the wires are veth pairs between namespaces of this test; Millrace takes its ends by
//! AF_XDP, and that of the tunnels by UDP sockets, too. A frame must arrive byte for byte where the list says, and nowhere else; what tunnels carry is looked at on
//! the hub. The table is printed: `cargo test -p millrace-tests --test interop -- --nocapture`.
//!
//! Needs root. Open vSwitch is started in a directory of its own and stopped again; where it is not installed its
//! test is ignored and says so (`apt-get install openvswitch-switch`). A kernel whose bridge was built without VLANs is not asked
//! about them, and no bridge of the kernel about service tags.

mod far;
mod linux;
mod millrace;
mod near;
mod openvswitch;
#[path = "../../../engine/tests/support/root_tests.rs"]
#[macro_use]
mod root_tests;
mod scenarios;
mod tunnels;
mod wires;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use far::Far;
use scenarios::Needs;
use wires::{Lane, Underlay, Wires};

/// Makes the other end on its side of the wires; says why it cannot.
type Make = fn(&Wires) -> Result<Box<dyn Far>, String>;

/// What came of a line.
enum Outcome {
    Held,
    Failed(String),
    /// The other end has not what the line is about.
    Lacking,
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Outcome::Held => "ok",
            Outcome::Failed(_) => "FAILED",
            Outcome::Lacking => "not run",
        }
    }
}

/// All lines with one other end over one underlay.
struct Column {
    underlay: Underlay,
    /// What carries our tunnels.
    lane: Lane,
    outcomes: Vec<Outcome>,
}

fn the_scenarios_hold_with_a_linux_bridge() {
    hold("Linux bridge", linux::make);
}

fn the_scenarios_hold_with_open_vswitch() {
    hold("Open vSwitch", openvswitch::make);
}

fn the_scenarios_hold_with_another_millrace() {
    hold("Millrace", millrace::make);
}

/// Runs all lines over both underlays, with each kind of port for our tunnels, and prints what came of each; the test is
/// ignored if the other end cannot be made.
fn hold(name: &'static str, make: Make) {
    // Two of them at once would wait for each other's processors longer than a frame may take.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let ways = [Underlay::Ipv4, Underlay::Ipv6].into_iter().flat_map(|way| [(way, Lane::AfXdp), (way, Lane::Udp)]);
    let column = |(underlay, lane)| match outcomes(name, &Wires::create(underlay, lane), make) {
        Ok(outcomes) => Column { underlay, lane, outcomes },
        Err(why) => root_tests::not_here(why),
    };
    let columns: Vec<Column> = ways.map(column).collect();
    let mut table = format!("\n{name}\n");
    let mut row = |first: &str, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:<13}")).collect();
        table += &format!("{first:<46} {}\n", cells.join(" "));
    };
    row("underlay", columns.iter().map(|column| format!("{:?}", column.underlay)).collect());
    row("our tunnels by", columns.iter().map(|column| format!("{:?}", column.lane)).collect());
    for (number, scenario) in scenarios::ALL.iter().enumerate() {
        row(scenario.name, columns.iter().map(|column| column.outcomes[number].word().to_owned()).collect());
    }
    let mut failed = Vec::new();
    for Column { underlay, lane, outcomes } in &columns {
        for (scenario, outcome) in scenarios::ALL.iter().zip(outcomes) {
            if let Outcome::Failed(why) = outcome {
                failed.push(format!("{} with {name} over {underlay:?}, {lane:?}: {why}", scenario.name));
            }
        }
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Lacking)) {
            table += &format!("over {underlay:?}: lines NOT RUN that are about {}\n", lacking(outcomes));
        }
    }
    println!("{table}");
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn lacking(outcomes: &[Outcome]) -> String {
    let lines = scenarios::ALL.iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Lacking));
    let mut words: Vec<&str> = lines.map(|(scenario, _)| scenario.needs.lacking()).collect();
    words.dedup();
    words.join(" and ")
}

fn outcomes(name: &str, wires: &Wires, make: Make) -> Result<Vec<Outcome>, String> {
    let far = make(wires)?;
    let mut pair = scenarios::Pair::create(wires, far);
    pair.settle();
    let run = |scenario: &scenarios::Scenario| {
        let lacks = match scenario.needs {
            Needs::Nothing => false,
            Needs::Vlans => !pair.far.has_vlans(),
            Needs::ServiceTags => !pair.far.has_service_tags(),
        };
        if lacks {
            return Outcome::Lacking;
        }
        match catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut pair))) {
            Ok(Ok(())) => Outcome::Held,
            Ok(Err(why)) => Outcome::Failed(why),
            Err(_) => Outcome::Failed(format!("panicked with {name}")),
        }
    };
    Ok(scenarios::ALL.iter().map(run).collect())
}

root_tests! {
    every run [
        the_scenarios_hold_with_a_linux_bridge,
        the_scenarios_hold_with_open_vswitch,
        the_scenarios_hold_with_another_millrace,
    ],
}
