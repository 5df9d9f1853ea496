//! One turn of a backend: every load once, with what it cost.

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::load::{self, Path};
use crate::processors::{Machine, run_time};
use crate::services::Services;
use crate::site::Wire;

/// What a value is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    /// Way of the traffic.
    pub(crate) way: String,
    pub(crate) load: &'static str,
    pub(crate) unit: &'static str,
}

/// A value that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// Gathers the values of a turn.
struct Turn<'a> {
    duration: Duration,
    values: &'a mut Vec<Value>,
}

impl Turn<'_> {
    fn note(&mut self, way: &str, load: &'static str, unit: &'static str, value: f64) {
        self.values.push(Value { metric: Metric { way: way.to_owned(), load, unit }, value });
    }

    fn streams(&mut self, way: &str, path: &Path) -> anyhow::Result<()> {
        for (count, load) in [(1, "TCP, 1 stream"), (4, "TCP, 4 streams")] {
            let machine = Machine::read()?;
            let (gigabits, again) = load::streams(path, count, self.duration)?;
            let used = machine.used()?;
            self.note(way, load, "Gbit/s", gigabits);
            self.note(way, load, "processors a Gbit/s", used / gigabits.max(1e-9));
            self.note(way, load, "segments sent again", again as f64);
        }
        Ok(())
    }

    fn datagrams(&mut self, way: &str, path: &Path) -> anyhow::Result<()> {
        let machine = Machine::read()?;
        let (sent, received) = load::datagrams(path, self.duration)?;
        let used = machine.used()?;
        self.note(way, "64-byte frames", "thousand/s received", received / 1e3);
        self.note(way, "64-byte frames", "thousand/s sent", sent / 1e3);
        self.note(way, "64-byte frames", "processor us a frame", used / received.max(1.0) * 1e6);
        Ok(())
    }

    fn transactions(&mut self, way: &str, path: &Path) -> anyhow::Result<()> {
        let times = load::transactions(path, self.duration)?;
        self.note(way, "request and response", "us p50", times.p50_microseconds);
        self.note(way, "request and response", "us p99", times.p99_microseconds);
        self.note(way, "request and response", "us p99.9", times.p999_microseconds);
        Ok(())
    }

    fn connections(&mut self, way: &str, path: &Path) -> anyhow::Result<()> {
        let machine = Machine::read()?;
        let (opened, failed) = load::connections(path, self.duration)?;
        let used = machine.used()?;
        self.note(way, "connections", "a second", opened);
        self.note(way, "connections", "processor us each", used / opened.max(1.0) * 1e6);
        self.note(way, "connections", "failed", failed as f64);
        Ok(())
    }
}

/// Pod to pod, on one node and across.
pub(crate) fn pods(backend: &dyn Backend, duration: Duration, values: &mut Vec<Value>) -> anyhow::Result<()> {
    let (ends, mut turn) = (backend.ends(), Turn { duration, values });
    let (near, far) = (Path::to(&ends.client, &ends.near)?, Path::to(&ends.client, &ends.far)?);
    backend.site().set_wire(Wire::Cuts);
    turn.streams("same node", &near)?;
    turn.datagrams("same node", &near)?;
    turn.transactions("same node", &near)?;
    turn.connections("same node", &near)?;
    let across = format!("across nodes, {}", Wire::Cuts.text());
    turn.streams(&across, &far)?;
    turn.datagrams("across nodes", &far)?;
    turn.transactions("across nodes", &far)?;
    turn.connections("across nodes", &far)?;
    backend.site().set_wire(Wire::PassesWhole);
    turn.streams(&format!("across nodes, {}", Wire::PassesWhole.text()), &far)?;
    backend.site().set_wire(Wire::Cuts);
    idle(backend, &mut turn);
    Ok(())
}

/// Through a Service to the other node, over a wire that cuts.
pub(crate) fn service(
    backend: &dyn Backend,
    services: Services,
    duration: Duration,
    values: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let (ends, mut turn) = (backend.ends(), Turn { duration, values });
    let path = Path { dialled: services.dialled(), ..Path::to(&ends.client, &ends.far)? };
    backend.site().set_wire(Wire::Cuts);
    let way = format!("Service of {}", services.count);
    turn.streams(&way, &path)?;
    turn.transactions(&way, &path)?;
    turn.connections(&way, &path)
}

fn idle(backend: &dyn Backend, turn: &mut Turn<'_>) {
    std::thread::sleep(Duration::from_secs(1));
    let (start, before) = (Instant::now(), run_time(&backend.processes()));
    std::thread::sleep(turn.duration);
    let used = (run_time(&backend.processes()) - before) / start.elapsed().as_secs_f64();
    turn.note("both nodes", "idle", "% of a processor, its processes", used * 100.0);
}
