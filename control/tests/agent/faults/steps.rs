//! One fault at each step of each verb in turn, and nothing is left behind.
//!
//! A call is made again and again, and the fault comes before its first step, its second, and so on until a call is over
//! before its turn. After a killed agent the next one alone must have cleaned up what was not complete, without a DEL.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::books;
use super::sandbox::{Known, Sandbox, network};
use super::tracer::{self, Step, at_step};
use super::world::World;
use crate::pod::{Answer, give_input};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    AgentKilled,
    PluginKilled,
    PluginKilledWithoutAgent,
    NamespaceLost,
    DiskFull,
}

const FAULTS: [Fault; 5] =
    [Fault::PluginKilledWithoutAgent, Fault::PluginKilled, Fault::NamespaceLost, Fault::DiskFull, Fault::AgentKilled];

/// A verb, and whether the pod has a veth.
const WORK: [(&str, bool); 5] = [("ADD", false), ("ADD", true), ("DEL", false), ("DEL", true), ("GC", true)];

/// One call with one fault.
struct Attempt {
    fault: Fault,
    verb: &'static str,
    veth: bool,
    /// Before which step, from 1.
    step: usize,
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.veth { "veth" } else { "TAP" };
        write!(formatter, "{:?} before step {} of {} with a {kind}", self.fault, self.step, self.verb)
    }
}

/// Goes through all of it, or every `stride`-th step beginning with one that `first` chooses. Returns how many faults
/// there were.
pub(super) fn go_through(world: &mut World, stride: usize, first: usize) -> usize {
    let mut faults = 0;
    for fault in FAULTS {
        for (number, (verb, veth)) in WORK.into_iter().enumerate() {
            if fault == Fault::PluginKilledWithoutAgent && verb != "DEL" {
                continue;
            }
            let begin = 1 + (first + 7 * number) % stride;
            let mut met: BTreeMap<String, usize> = BTreeMap::new();
            for step in (begin..).step_by(stride) {
                let Some(Step { thread, call }) = meet(world, &Attempt { fault, verb, veth, step }) else { break };
                *met.entry(format!("{thread} {call}")).or_default() += 1;
            }
            let count: usize = met.values().sum();
            println!("{fault:?} at {verb} with a {}: {count} steps {met:?}", if veth { "veth" } else { "TAP" });
            faults += count;
        }
    }
    faults
}

/// The step that the fault met, if there was such a step.
fn meet(world: &mut World, attempt: &Attempt) -> Option<Step> {
    world.start_agent();
    let mut sandbox = Sandbox::create(1000 + attempt.step, attempt.veth);
    if attempt.verb != "ADD" {
        let answer = sandbox.call("ADD", world.directory());
        assert!(answer.success, "{attempt}: {}", answer.document);
        sandbox.learn("ADD", &answer, true);
    }
    if attempt.fault == Fault::PluginKilledWithoutAgent {
        world.kill_agent();
    }
    let (answer, step) = call(world, &mut sandbox, attempt);
    let met = step.is_some();
    world.disk.empty();
    if attempt.fault == Fault::AgentKilled && met {
        world.kill_agent();
    }
    world.start_agent();
    assert!(met || answer.success, "{attempt}: {}", answer.document);
    let always = match attempt.fault {
        Fault::AgentKilled | Fault::NamespaceLost => attempt.verb == "DEL",
        Fault::PluginKilled | Fault::PluginKilledWithoutAgent | Fault::DiskFull => false,
    };
    assert!(!always || answer.success, "{attempt}: {}", answer.document);
    let verb = if attempt.verb == "GC" { "DEL" } else { attempt.verb };
    sandbox.learn(verb, &answer, false);
    after(world, sandbox, attempt.fault, &format!("{attempt}, {step:?}"));
    step
}

/// Makes the call with the fault.
fn call(world: &World, sandbox: &mut Sandbox, attempt: &Attempt) -> (Answer, Option<Step>) {
    let directory = world.directory();
    let mut input = sandbox.configuration(attempt.verb, directory);
    if attempt.verb == "GC" {
        input = network(directory);
        input["cni.dev/valid-attachments"] = json!([]);
    }
    let mut plugin = sandbox.start(attempt.verb, directory);
    let of_plugin = matches!(attempt.fault, Fault::PluginKilled | Fault::PluginKilledWithoutAgent);
    let process = if of_plugin { plugin.id() } else { world.agent().process() };
    let lost = Mutex::new((attempt.fault == Fault::NamespaceLost).then(|| sandbox.lose_namespace()).flatten());
    let act = || match attempt.fault {
        Fault::AgentKilled | Fault::PluginKilled | Fault::PluginKilledWithoutAgent => tracer::kill(process),
        Fault::NamespaceLost => drop(lost.lock().unwrap_or_else(PoisonError::into_inner).take()),
        Fault::DiskFull => world.disk.fill(0),
    };
    at_step(process, attempt.step, act, || {
        give_input(&mut plugin, input.to_string().as_bytes());
        Answer::of(plugin)
    })
}

/// What must hold afterwards, and after the DEL that a runtime sends.
fn after(world: &mut World, mut sandbox: Sandbox, fault: Fault, when: &str) {
    if sandbox.namespace().is_some() && fault == Fault::AgentKilled && sandbox.known == Known::Nothing {
        // Either the attachment is complete, or it is not there.
        let whole = books::is_recorded(world, &sandbox.container);
        sandbox.known = if whole { Known::Attached } else { Known::Detached };
    }
    if sandbox.namespace().is_none() || sandbox.known == Known::Nothing {
        world.delete(&mut sandbox);
    }
    let mut sandboxes = [sandbox];
    world.settled(&sandboxes, when);
    if sandboxes[0].known == Known::Attached {
        world.delete(&mut sandboxes[0]);
        world.settled(&sandboxes, when);
    }
}
