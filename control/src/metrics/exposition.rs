//! From the documents of `millrace show` to text.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Timings;
use crate::api::model::{DropReport, PortReport, StatusReport, WorkerReport};
use crate::api::{Inspect, InspectFailure};

/// Everything as OpenMetrics text.
///
/// # Errors
/// What [`Inspect`] says.
pub fn text(inspect: &dyn Inspect, timings: &Arc<Timings>) -> Result<String, InspectFailure> {
    let node = Node {
        status: inspect.status()?,
        workers: inspect.workers()?,
        ports: inspect.ports()?,
        drops: inspect.drops()?,
        timings: Arc::clone(timings),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(node));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|error| InspectFailure::Unavailable(error.to_string()))?;
    Ok(text)
}

/// What is told of the node at one moment.
#[derive(Debug)]
struct Node {
    status: StatusReport,
    workers: Vec<WorkerReport>,
    ports: Vec<PortReport>,
    drops: Vec<DropReport>,
    timings: Arc<Timings>,
}

type Labels<const N: usize> = [(&'static str, String); N];

/// Writes families one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A counter for each set of labels. Its name gets the ending `_total`.
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, values.map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, values.map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    fn family<const N: usize, Metric: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        metrics: impl Iterator<Item = (Labels<N>, Metric)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in metrics {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }
}

impl Collector for Node {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.encode_node(&mut families)?;
        self.encode_timings(&mut families)?;
        self.encode_workers(&mut families)?;
        self.encode_ports(&mut families)?;
        let drops = self.drops.iter().map(|drop| ([("reason", drop.reason.clone())], drop.frames as f64));
        families.counters(
            "millrace_dropped_frames",
            "Frames dropped, by reason; `millrace show drops` explains.",
            drops,
        )
    }
}

impl Node {
    fn encode_node(&self, families: &mut Families<'_>) -> fmt::Result {
        let status = &self.status;
        let build = [("version", status.version.clone()), ("node", status.node.clone())];
        families.gauges("millrace_build_info", "The agent.", std::iter::once((build, 1.0)))?;
        for (name, help, value) in [
            ("millrace_uptime_seconds", "Time since the agent started.", status.uptime_seconds as f64),
            ("millrace_tables_generation", "Generation of the tables in force.", status.generation as f64),
            ("millrace_pods", "Pods attached.", f64::from(status.pods)),
            ("millrace_uplinks", "Uplinks in use.", f64::from(status.uplinks)),
            ("millrace_problems", "What is wrong; `millrace show status` has the list.", status.problems.len() as f64),
            ("millrace_unaccounted_frames", "Other than 0 is a defect.", status.unaccounted_frames as f64),
        ] {
            families.gauge(name, help, value)?;
        }
        let lacking = status.services_without_local_endpoints;
        let policies = [("internal", lacking.internal), ("external", lacking.external)];
        families.gauges(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Services with endpoints but none on this node, where the traffic policy is Local.",
            policies.into_iter().map(|(policy, count)| ([("traffic_policy", policy.to_owned())], count as f64)),
        )?;
        let outcomes = status
            .events
            .map(|events| [("written", events.written), ("refused", events.refused), ("dropped", events.dropped)]);
        let outcomes = outcomes.into_iter().flatten();
        families.counters(
            "millrace_kubernetes_events",
            "Events for operators, by what became of them.",
            outcomes.map(|(outcome, count)| ([("outcome", outcome.to_owned())], count as f64)),
        )
    }

    fn encode_timings(&self, families: &mut Families<'_>) -> fmt::Result {
        let (name, help) =
            ("kubeproxy_sync_proxy_rules_duration_seconds", "From the first change of a batch to its tables in force.");
        let family = families.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        self.timings.settling.encode(family)?;
        let (name, help) = (
            "kubeproxy_network_programming_duration_seconds",
            "From a pod's change, as its EndpointSlice tells it, until every worker decides by it.",
        );
        let family = families.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        self.timings.programming.encode(family)?;
        let (name, help) =
            ("millrace_realisation_seconds", "From the arrival of an object until every worker decides by it.");
        let mut family = families.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (kind, histogram) in &self.timings.realising {
            histogram.encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        let last = "When tables were last brought into step with the objects, since 1970.";
        families.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", last, self.timings.last_seconds())
    }

    fn encode_workers(&self, families: &mut Families<'_>) -> fmt::Result {
        type Value = fn(&WorkerReport) -> f64;
        let label = |worker: &WorkerReport| [("worker", worker.worker.to_string())];
        let counters: [(&str, &str, Value); 6] = [
            ("millrace_worker_failures", "Times it failed and was started again.", |worker| worker.failures as f64),
            ("millrace_worker_stalls", "Times it stood still.", |worker| worker.stalls as f64),
            ("millrace_worker_slept_seconds", "Time asleep.", |worker| worker.slept_nanoseconds as f64 / 1e9),
            ("millrace_worker_uptime_seconds", "Time since the start.", |worker| {
                worker.uptime_nanoseconds as f64 / 1e9
            }),
            ("millrace_flow_cache_hits", "Packets of known flows.", |worker| worker.flow_cache_hits as f64),
            ("millrace_flow_cache_misses", "Packets that were decided.", |worker| worker.flow_cache_misses as f64),
        ];
        for (name, help, value) in counters {
            families.counters(name, help, self.workers.iter().map(|worker| (label(worker), value(worker))))?;
        }
        let gauges: [(&str, &str, Value); 5] = [
            ("millrace_worker_works", "1 while it works; 0 while it stands still, and once it has ended.", |worker| {
                f64::from(u8::from(worker.standing == "works"))
            }),
            ("millrace_flows", "Entries of the flow cache.", |worker| worker.flows as f64),
            ("millrace_held_frames", "Frames queued for a port or another worker.", |worker| worker.held_frames as f64),
            ("millrace_free_frames", "Free head frames.", |worker| worker.free_frames as f64),
            ("millrace_worker_generation", "Generation of the tables in use.", |worker| worker.generation as f64),
        ];
        for (name, help, value) in gauges {
            families.gauges(name, help, self.workers.iter().map(|worker| (label(worker), value(worker))))?;
        }
        let events = self.workers.iter().flat_map(|worker| {
            let labels = |event: &String| [("worker", worker.worker.to_string()), ("event", event.clone())];
            worker.events.iter().map(move |(event, count)| (labels(event), *count as f64))
        });
        families.counters("millrace_events", "What workers count besides; docs/counters.md explains.", events)?;
        let cycles = self.workers.iter().flat_map(|worker| {
            let labels = |work: &String| [("worker", worker.worker.to_string()), ("work", work.clone())];
            worker.cycles.work.iter().map(move |(work, cycles)| (labels(work), *cycles as f64))
        });
        families.counters("millrace_measured_cycles", "Cycles of one turn in 31, by kind of work.", cycles)
    }

    fn encode_ports(&self, families: &mut Families<'_>) -> fmt::Result {
        type Value = fn(&PortReport) -> f64;
        let label =
            |port: &PortReport| [("port", port.name.clone()), ("role", port.role.clone()), ("kind", port.kind.clone())];
        let counters: [(&str, &str, Value); 6] = [
            ("millrace_port_received_frames", "Frames received; a unit counts once.", |port| {
                port.received_frames as f64
            }),
            ("millrace_port_received_bytes", "Bytes received.", |port| port.received_bytes as f64),
            ("millrace_port_sent_frames", "Frames sent; a unit counts once.", |port| port.sent_frames as f64),
            ("millrace_port_sent_bytes", "Bytes sent.", |port| port.sent_bytes as f64),
            ("millrace_port_dropped_frames", "Frames dropped on their way in or out.", |port| {
                port.dropped_frames as f64
            }),
            ("millrace_port_kernel_dropped_frames", "Frames that the kernel dropped before.", |port| {
                port.queues.iter().map(|queue| queue.kernel_dropped_frames as f64).sum()
            }),
        ];
        for (name, help, value) in counters {
            families.counters(name, help, self.ports.iter().map(|port| (label(port), value(port))))?;
        }
        Ok(())
    }
}
