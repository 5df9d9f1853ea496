//! Kubernetes Events for what an operator must see: what `show status` calls problems, told at the objects they regard.
//!
//! Nothing pushes: a thread of the agent compares the present problems with what it has told ([`Ledger`]), once a second,
//! and writes what is new as `events.k8s.io/v1` ([`EventSink`]). So neither forwarding nor the reconcile thread ever waits
//! for an Event, and a problem that lasts is told once, and again before the server forgets it ([`REFRESHED`]). One that goes
//! and comes back within [`REMEMBERED`] counts in the series of its Event.
//!
//! A problem of an object looks the same from every node. Its Event has a name made of what it says, so that the first
//! node writes it and the server answers the others that it exists: one Event, not one for each node. Nodes ask one after
//! the other, [`BETWEEN_NODES`] apart in the mean.
//!
//! Bounds: [`A_MINUTE`] writes a minute, [`NOTICES`] notices remembered. What found no room, or was gone before its turn,
//! is counted as dropped. With a directory of files there are no Events.

mod ledger;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

pub use ledger::{Counts, Due, Ledger, Outcome};

use crate::api::model;
use crate::cluster::NodeName;
use crate::observe::NODE;
use crate::problem::Problem;
use crate::stable_hash::hash_64;
use crate::store::{ObjectKey, StoreError};

/// Most writes a minute; so many at once after a quiet minute.
pub const A_MINUTE: u32 = 20;

/// Notices that are remembered, some 300 bytes each.
pub const NOTICES: usize = 1_000;

/// How long after a problem has gone its Event is still continued rather than written anew; a server keeps it for an hour.
pub const REMEMBERED: Duration = Duration::from_secs(600);

/// How long an Event of what is still there stays as it is: then it is told again, before the server forgets it.
pub const REFRESHED: Duration = Duration::from_secs(50 * 60);

/// Mean time between two nodes of a cluster that write of one object: a server gets at most so many writes of all of them.
pub const BETWEEN_NODES: Duration = Duration::from_millis(10);

/// Longest note (`NoteLengthLimit` in pkg/apis/core/validation/events.go), in bytes.
const NOTE_BYTES: usize = 1024;

/// Who reports, as `reportingController` has it.
const CONTROLLER: &str = "millrace.dev/agent";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Normal,
    /// Somebody should do something.
    Warning,
}

impl Severity {
    /// As the field `type` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What there is to tell of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Notice {
    /// The object.
    pub regarding: ObjectKey,
    /// How bad it is.
    pub severity: Severity,
    /// Why, in one word of many, as `kubectl get events` shows it: `AddressContested`.
    pub reason: String,
    /// A sentence.
    pub note: String,
}

impl Notice {
    /// A problem of the configuration, told at its object, or at the node if it has none.
    #[must_use]
    pub fn of(problem: &Problem, node: &NodeName) -> Self {
        let told = model::Problem::from(problem);
        match &problem.object {
            Some(object) => {
                Self::warning(object.clone(), told.kind.as_deref().unwrap_or("misconfigured"), told.message)
            }
            None => Self::of_node(&told, node),
        }
    }

    /// A problem of the node itself.
    #[must_use]
    pub fn of_node(problem: &model::Problem, node: &NodeName) -> Self {
        Self::warning(node_key(node), problem.kind.as_deref().unwrap_or("node_problem"), problem.message.clone())
    }

    fn warning(regarding: ObjectKey, kind: &str, note: String) -> Self {
        Self { regarding, severity: Severity::Warning, reason: camel_case(kind), note }
    }

    /// That an agent of this version forwards.
    #[must_use]
    pub fn started(node: &NodeName, version: &str) -> Self {
        let note = format!("millrace agent {version} forwards on this node");
        Self { regarding: node_key(node), severity: Severity::Normal, reason: "AgentStarted".to_owned(), note }
    }

    /// That this problem of a node has gone; of an object nobody is told, since it was changed by whoever mended it.
    #[must_use]
    pub fn resolved(&self) -> Option<Self> {
        let of_node = self.regarding.kind == NODE && self.severity == Severity::Warning;
        of_node.then(|| Self {
            severity: Severity::Normal,
            reason: format!("{}Resolved", self.reason),
            note: format!("no longer: {}", self.note),
            ..self.clone()
        })
    }
}

fn node_key(node: &NodeName) -> ObjectKey {
    ObjectKey::cluster_scoped(NODE, node.as_str())
}

/// `uplink_capability` to `UplinkCapability`.
fn camel_case(kind: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    kind.split('_').map(word).collect()
}

/// Writes Events; calls wait for an answer.
pub trait EventSink: Send + Sync {
    /// Writes an Event that must not exist yet.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`], also where another node has written it.
    fn create(&self, regarding: &ObjectKey, name: &str, event: Value) -> Result<(), StoreError>;

    /// Says that an Event has come so many times, the last one now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the server has forgotten it.
    fn repeat(&self, regarding: &ObjectKey, name: &str, series: Value) -> Result<(), StoreError>;
}

/// Who writes: part of each Event of a node.
#[derive(Clone, Debug)]
pub struct Reporter {
    node: NodeName,
    /// Distinguishes this life of the agent from others.
    life: u128,
}

impl Reporter {
    /// The agent of `node`, started now.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        let life = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self { node, life }
    }

    /// The name of a notice's Event: of an object the same from every node, of the node another one in each life.
    #[must_use]
    pub fn name(&self, notice: &Notice) -> String {
        let life = if notice.regarding.kind == NODE { self.life } else { 0 };
        let Notice { regarding, severity, reason, note } = notice;
        let hash = hash_64(&format!("{regarding} {} {reason} {note} {life}", severity.name()));
        // An object's name may be as long as a name may be.
        let object: String = regarding.name.chars().take(230).collect();
        format!("{}.{hash:016x}", object.trim_end_matches(['.', '-']))
    }

    /// How long this node, one of so many, waits with what all of them see.
    #[must_use]
    pub fn stagger(&self, nodes: usize) -> Duration {
        let longest = BETWEEN_NODES.as_micros() as u64 * nodes.saturating_sub(1) as u64;
        Duration::from_micros(hash_64(self.node.as_str()) % (longest + 1))
    }

    /// Writes what is due.
    pub fn write(&self, sink: &dyn EventSink, due: &Due) -> Outcome {
        let (notice, name) = (&due.notice, self.name(&due.notice));
        let now = micro_time(SystemTime::now());
        if let Some(count) = due.count {
            let series = json!({"series": {"count": count, "lastObservedTime": now}});
            match sink.repeat(&notice.regarding, &name, series) {
                Err(StoreError::NotFound { .. }) => {}
                answer => return Outcome::of(answer, true),
            }
        }
        match sink.create(&notice.regarding, &name, self.event(notice, &now)) {
            Err(StoreError::AlreadyExists { .. }) => Outcome::Written { ours: false },
            answer => Outcome::of(answer, true),
        }
    }

    /// All of an Event but what the server's side knows: its name, its namespace, what identifies the object.
    fn event(&self, notice: &Notice, now: &str) -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "eventTime": now,
            "reportingController": CONTROLLER,
            "reportingInstance": self.node.as_str(),
            "action": "Configure",
            "type": notice.severity.name(),
            "reason": notice.reason,
            "note": cut(&notice.note, NOTE_BYTES),
        })
    }
}

/// As much of `text` as fits, by whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A time with microseconds, as the API's `MicroTime` is written.
fn micro_time(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| String::new(), |stamp| format!("{stamp:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_for_all_nodes_where_all_see_the_same() {
        let node = |name: &str| NodeName::new(name).expect("a name");
        let (one, other) = (Reporter::new(node("a")), Reporter { life: 7, ..Reporter::new(node("b")) });
        let object = ObjectKey::cluster_scoped(crate::observe::IP_POOL, "pods");
        let notice = Notice::of(&Problem::new("is wrong").of(&object).kind("invalid_object"), &one.node);
        assert_eq!((notice.reason.as_str(), one.name(&notice)), ("InvalidObject", other.name(&notice)));
        let of_node = Notice::of(&Problem::new("is wrong"), &one.node);
        assert_ne!(one.name(&of_node), other.name(&of_node));
        assert_eq!((of_node.regarding.name.as_str(), of_node.reason.as_str()), ("a", "NodeProblem"));
        let resolved = of_node.resolved().expect("told");
        assert_eq!((resolved.reason.as_str(), resolved.resolved()), ("NodeProblemResolved", None));
        assert_eq!(notice.resolved(), None);
        assert_eq!(one.stagger(1), Duration::ZERO);
        assert!(one.stagger(5_000) < Duration::from_secs(50) && one.stagger(5_000) != other.stagger(5_000));
    }

    #[test]
    fn notes_are_cut_between_characters_and_times_have_six_digits() {
        assert_eq!((cut("aä", 2), cut("aä", 3), cut("", 5)), ("a", "aä", ""));
        assert_eq!(micro_time(UNIX_EPOCH + Duration::from_millis(1_500)), "1970-01-01T00:00:01.500000Z");
    }
}
