//! Label selectors: a conjunction of requirements on labels.
//!
//! In canonical form: requirements sorted, each once, a single label an `In` of one value. Two selectors that are
//! written differently and require the same are nearly always equal, so that what they select is computed once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::NamespaceName;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label that the API server gives every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The label exists and has one of these values.
    In(String, BTreeSet<String>),
    /// The label does not exist, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label exists.
    Exists(String),
    /// The label does not exist.
    DoesNotExist(String),
}

impl Requirement {
    /// The key of the label it asks for.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key) => key,
        }
    }

    /// Whether `labels` meet it.
    #[must_use]
    pub fn is_met(&self, labels: &Labels) -> bool {
        match self {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// A conjunction of requirements; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// The selector with these requirements.
    #[must_use]
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_unstable();
        requirements.dedup();
        Self(requirements)
    }

    /// Whether it selects an object with these labels.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }

    /// Whether it selects a namespace of which only the name is known; `None` if other labels decide.
    #[must_use]
    pub fn selects_by_name(&self, name: &NamespaceName) -> Option<bool> {
        let labels = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_string())]);
        let (of_name, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|requirement| requirement.key() == NAMESPACE_NAME_LABEL);
        match of_name.iter().all(|requirement| requirement.is_met(&labels)) {
            false => Some(false),
            true => others.is_empty().then_some(true),
        }
    }

    /// Its requirements, sorted.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match self {
            Requirement::In(key, values) if values.len() == 1 => write!(formatter, "{key}={}", list(values)),
            Requirement::In(key, values) => write!(formatter, "{key} in ({})", list(values)),
            Requirement::NotIn(key, values) => write!(formatter, "{key} notin ({})", list(values)),
            Requirement::Exists(key) => formatter.write_str(key),
            Requirement::DoesNotExist(key) => write!(formatter, "!{key}"),
        }
    }
}

/// As `kubectl -l` takes it; `all` for the empty one.
impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("all");
        }
        for (at, requirement) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(formatter, "{separator}{requirement}")?;
        }
        Ok(())
    }
}

/// Which namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Namespaces {
    /// The one with this name.
    Named(NamespaceName),
    /// Those with such labels.
    Matching(Selector),
}

/// Which pods of which namespaces. Pods of the host network are never among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodSelection {
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The pods in them.
    pub pods: Selector,
}

impl fmt::Display for PodSelection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::Named(name) => write!(formatter, "pods {} in namespace {name}", self.pods),
            Namespaces::Matching(selector) => write!(formatter, "pods {} in namespaces {selector}", self.pods),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_says_what_it_does_without_the_label() {
        let values = || BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let key = || "k".to_owned();
        let labels = |value: &str| Labels::from([(key(), value.to_owned())]);
        let cases = [
            (Requirement::In(key(), values()), [true, false, false]),
            (Requirement::NotIn(key(), values()), [false, true, true]),
            (Requirement::Exists(key()), [true, true, false]),
            (Requirement::DoesNotExist(key()), [false, false, true]),
        ];
        for (requirement, [with_a, with_c, without]) in cases {
            let selector = Selector::new(vec![requirement]);
            assert_eq!(selector.selects(&labels("a")), with_a, "{selector}");
            assert_eq!(selector.selects(&labels("c")), with_c, "{selector}");
            assert_eq!(selector.selects(&Labels::new()), without, "{selector}");
        }
        assert!(Selector::default().selects(&Labels::new()));
    }

    #[test]
    fn a_name_alone_decides_what_asks_for_nothing_else() {
        let name = NamespaceName::new("red").expect("name");
        let of_name = |text: &str| Requirement::In(NAMESPACE_NAME_LABEL.to_owned(), BTreeSet::from([text.to_owned()]));
        let other = || Requirement::DoesNotExist("stage".to_owned());
        let says = |requirements| Selector::new(requirements).selects_by_name(&name);
        assert_eq!(says(vec![]), Some(true));
        assert_eq!(says(vec![of_name("red")]), Some(true));
        assert_eq!(says(vec![of_name("blue"), other()]), Some(false));
        assert_eq!(says(vec![of_name("red"), other()]), None);
    }
}
