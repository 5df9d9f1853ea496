//! Problems of the node that no object has: who told them, so that the same looks take them back.
//!
//! Everything that finds such problems is a [`Source`], and tells all it knows each time it has looked: what it does not
//! tell again is over. So a problem lasts as long as it is true, and its Event is followed by the one that says it has gone.
//! What no later look can find mended ends by its age. At most [`MOST`] are kept; what finds no room is told by the next
//! look that does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::api::model::Problem;
use crate::cni_server::AttachmentKey;

/// Problems kept, some 300 bytes each.
const MOST: usize = 100;

/// How long what happened once is told: as long as a server keeps Events.
const HAPPENED: Duration = Duration::from_secs(3600);

/// Who tells problems.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The record of attachments, read at start. What was lost of it happened once.
    Record,
    /// The directory that state is kept in. It is chosen at start.
    KeptState,
    /// An attachment: taking it up, cleaning it up. Over when it is detached.
    Attachment(AttachmentKey),
    /// DELs that were left while no agent answered.
    LeftDeletes,
    /// Giving addresses back.
    Addresses,
    /// Taking over connections that the kernel translates: once.
    Adoption,
    /// The port for metrics.
    Metrics,
    /// The ports for health checks.
    HealthChecks,
    /// The runtime's network configuration.
    NetworkConfiguration,
}

impl Source {
    /// Whether it tells of what happened, which nothing ends but time.
    const fn happened(&self) -> bool {
        matches!(self, Self::Record | Self::Adoption)
    }
}

/// What each source told last.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<Source, (Instant, Vec<Problem>)>);

impl Reports {
    /// Everything that a source knows, in place of what it told before.
    pub(super) fn replace(&mut self, source: Source, problems: impl IntoIterator<Item = Problem>, now: Instant) {
        self.0.remove(&source);
        let room = MOST.saturating_sub(self.0.values().map(|(_, told)| told.len()).sum());
        let problems: Vec<Problem> = problems.into_iter().take(room).collect();
        if !problems.is_empty() {
            self.0.insert(source, (now, problems));
        }
    }

    /// One more problem of a source that tells them one by one.
    pub(super) fn add(&mut self, source: Source, problem: Problem, now: Instant) {
        let told = self.0.get(&source).map(|(_, told)| told.clone()).unwrap_or_default();
        let known = told.contains(&problem);
        self.replace(source, told.into_iter().chain((!known).then_some(problem)), now);
    }

    /// All of them.
    pub(super) fn all(&mut self, now: Instant) -> impl Iterator<Item = &Problem> {
        self.0.retain(|source, (at, _)| !source.happened() || now.duration_since(*at) < HAPPENED);
        self.0.values().flat_map(|(_, told)| told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Problem {
        Problem::from(text.to_owned())
    }

    fn told(reports: &mut Reports, now: Instant) -> Vec<String> {
        reports.all(now).map(|problem| problem.message.clone()).collect()
    }

    #[test]
    fn what_a_source_does_not_tell_again_is_over() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        reports.replace(Source::Metrics, [problem("port taken")], now);
        reports.replace(Source::Addresses, [problem("one"), problem("two")], now);
        reports.replace(Source::Addresses, [problem("two")], now);
        assert_eq!(told(&mut reports, now), ["two", "port taken"]);
        reports.replace(Source::Metrics, [], now);
        reports.replace(Source::Addresses, [], now);
        assert!(told(&mut reports, now).is_empty() && reports.0.is_empty());
    }

    #[test]
    fn of_an_attachment_everything_is_told_once_until_it_goes() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let key = |id: &str| AttachmentKey { container_id: id.to_owned(), interface: "eth0".to_owned() };
        for text in ["held twice", "cut off", "held twice"] {
            reports.add(Source::Attachment(key("a")), problem(text), now);
        }
        reports.add(Source::Attachment(key("b")), problem("cut off, too"), now);
        assert_eq!(told(&mut reports, now), ["held twice", "cut off", "cut off, too"]);
        reports.replace(Source::Attachment(key("a")), [], now);
        assert_eq!(told(&mut reports, now), ["cut off, too"]);
    }

    #[test]
    fn what_happened_once_ends_by_its_age_and_nothing_else_does() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        reports.replace(Source::Adoption, [problem("connections break")], now);
        reports.replace(Source::Metrics, [problem("port taken")], now);
        assert_eq!(told(&mut reports, now + HAPPENED - Duration::from_secs(1)).len(), 2);
        assert_eq!(told(&mut reports, now + HAPPENED), ["port taken"]);
    }

    #[test]
    fn a_flood_is_bounded_and_leaves_room_when_it_ends() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let flood = || (0..1_000).map(|number| problem(&number.to_string()));
        reports.replace(Source::LeftDeletes, flood(), now);
        reports.replace(Source::Metrics, [problem("port taken")], now);
        assert_eq!(told(&mut reports, now).len(), MOST);
        reports.replace(Source::LeftDeletes, flood().take(1), now);
        reports.replace(Source::Metrics, [problem("port taken")], now);
        assert_eq!(told(&mut reports, now), ["0", "port taken"]);
    }
}
