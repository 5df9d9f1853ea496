//! Which of many selectors select an object, without asking each.
//!
//! A selector that demands a value of a label is found by that label and value; only selectors that demand none
//! (`Exists`, `NotIn`, or nothing) are asked every time. What is found is asked in full. An object with five labels
//! costs five lookups and the selectors that share a label with it.
//!
//! Labels may not be known yet, of a pod or of its namespace. Then a selection is found as [`Certainty::Possible`]
//! where they decide, and each selection that may be meant is looked at.

use std::borrow::Cow;

use hashbrown::HashMap;

use crate::cluster::{Labels, NamespaceName, NamespaceRecord, Namespaces, PodSelection, Requirement, Selector};

type Entries<T> = Vec<(Selector, T)>;

/// Selectors with a value each.
#[derive(Clone, Debug)]
pub(super) struct LabelIndex<T> {
    by_label: HashMap<String, HashMap<String, Entries<T>>>,
    others: Entries<T>,
    entries: usize,
}

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), others: Vec::new(), entries: 0 }
    }
}

/// The label by whose values a selector is found.
fn demanded(selector: &Selector) -> Option<(&String, impl Iterator<Item = &String>)> {
    selector.requirements().iter().find_map(|requirement| match requirement {
        Requirement::In(key, values) => Some((key, values.iter())),
        Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::DoesNotExist(_) => None,
    })
}

impl<T: Clone + PartialEq> LabelIndex<T> {
    pub(super) fn insert(&mut self, selector: &Selector, value: T) {
        self.entries += 1;
        let Some((key, values)) = demanded(selector) else {
            return self.others.push((selector.clone(), value));
        };
        let by_value = self.by_label.entry_ref(key.as_str()).or_default();
        for demanded in values {
            by_value.entry_ref(demanded.as_str()).or_default().push((selector.clone(), value.clone()));
        }
    }

    pub(super) fn remove(&mut self, selector: &Selector, value: &T) {
        let take = |entries: &mut Entries<T>| {
            let at = entries.iter().position(|(known, of)| known == selector && of == value);
            at.map(|at| entries.swap_remove(at)).is_some()
        };
        let Some((key, values)) = demanded(selector) else {
            self.entries -= usize::from(take(&mut self.others));
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else { return };
        let mut found = false;
        for demanded in values {
            if let Some(entries) = by_value.get_mut(demanded) {
                found |= take(entries);
                if entries.is_empty() {
                    by_value.remove(demanded);
                }
            }
        }
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
        self.entries -= usize::from(found);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Calls `visit` with the value of each selector that selects an object with these labels, each once.
    pub(super) fn for_each_match(&self, labels: &Labels, visit: &mut dyn FnMut(&T)) {
        let by_label = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        for entries in by_label.chain([&self.others]) {
            entries.iter().filter(|(selector, _)| selector.selects(labels)).for_each(|(_, value)| visit(value));
        }
    }

    /// Calls `visit` with every value, and whether its selector selects everything; one whose selector demands one of
    /// several values comes several times.
    fn for_each(&self, visit: &mut dyn FnMut(&T, bool)) {
        let by_label = self.by_label.values().flat_map(HashMap::values);
        let all = by_label.chain([&self.others]).flatten();
        all.for_each(|(selector, value)| visit(value, selector.is_everything()));
    }
}

/// Whether a selection surely has a pod, or may have it for all that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Certainty {
    Possible,
    Certain,
}

/// What is known of a pod's namespace.
#[derive(Clone, Debug)]
pub(super) struct Scope<'a> {
    /// It, or what its name tells.
    pub(super) record: Cow<'a, NamespaceRecord>,
    /// Whether its other labels are known.
    pub(super) labels_known: bool,
}

impl Scope<'_> {
    /// Whether the namespace is among these; `None` if labels decide that are not known.
    pub(super) fn is_among(&self, namespaces: &Namespaces) -> Option<bool> {
        match namespaces {
            Namespaces::Named(name) => Some(*name == self.record.name),
            Namespaces::Matching(selector) if self.labels_known => Some(selector.selects(&self.record.labels)),
            Namespaces::Matching(selector) => selector.selects_by_name(&self.record.name),
        }
    }
}

/// Selections of pods with a value each: first by namespace, then by labels.
#[derive(Clone, Debug)]
pub(super) struct PodIndex<T> {
    named: HashMap<NamespaceName, LabelIndex<T>>,
    /// Places in `scopes`, by what they demand of a namespace.
    matching: LabelIndex<usize>,
    places: HashMap<Selector, usize>,
    scopes: Vec<LabelIndex<T>>,
    free: Vec<usize>,
}

impl<T> Default for PodIndex<T> {
    fn default() -> Self {
        Self {
            named: HashMap::new(),
            matching: LabelIndex::default(),
            places: HashMap::new(),
            scopes: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Clone + PartialEq> PodIndex<T> {
    pub(super) fn insert(&mut self, selection: &PodSelection, value: T) {
        match &selection.namespaces {
            Namespaces::Named(name) => self.named.entry_ref(name).or_default().insert(&selection.pods, value),
            Namespaces::Matching(namespaces) => {
                let place = self.place(namespaces);
                self.scopes[place].insert(&selection.pods, value);
            }
        }
    }

    fn place(&mut self, namespaces: &Selector) -> usize {
        if let Some(place) = self.places.get(namespaces) {
            return *place;
        }
        let place = self.free.pop().unwrap_or(self.scopes.len());
        if place == self.scopes.len() {
            self.scopes.push(LabelIndex::default());
        }
        self.places.insert(namespaces.clone(), place);
        self.matching.insert(namespaces, place);
        place
    }

    pub(super) fn remove(&mut self, selection: &PodSelection, value: &T) {
        match &selection.namespaces {
            Namespaces::Named(name) => {
                let Some(index) = self.named.get_mut(name) else { return };
                index.remove(&selection.pods, value);
                if index.is_empty() {
                    self.named.remove(name);
                }
            }
            Namespaces::Matching(namespaces) => {
                let Some(place) = self.places.get(namespaces).copied() else { return };
                self.scopes[place].remove(&selection.pods, value);
                if self.scopes[place].is_empty() {
                    self.places.remove(namespaces);
                    self.matching.remove(namespaces, &place);
                    self.free.push(place);
                }
            }
        }
    }

    fn for_each_scope(&self, scope: &Scope<'_>, visit: &mut dyn FnMut(&LabelIndex<T>, Certainty)) {
        if let Some(index) = self.named.get(&scope.record.name) {
            visit(index, Certainty::Certain);
        }
        if scope.labels_known {
            let labels = &scope.record.labels;
            return self.matching.for_each_match(labels, &mut |place| visit(&self.scopes[*place], Certainty::Certain));
        }
        for (selector, place) in &self.places {
            match selector.selects_by_name(&scope.record.name) {
                Some(false) => {}
                Some(true) => visit(&self.scopes[*place], Certainty::Certain),
                None => visit(&self.scopes[*place], Certainty::Possible),
            }
        }
    }

    /// Calls `visit` with the value of each selection that has a pod of this namespace, or may have it; `None` for labels
    /// that are not known.
    pub(super) fn for_each_match(
        &self,
        scope: &Scope<'_>,
        labels: Option<&Labels>,
        visit: &mut dyn FnMut(&T, Certainty),
    ) {
        self.for_each_scope(scope, &mut |index, certainty| match labels {
            Some(labels) => index.for_each_match(labels, &mut |value| visit(value, certainty)),
            None => index.for_each(&mut |value, everything| {
                visit(value, if everything { certainty } else { Certainty::Possible });
            }),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn requirement() -> impl Strategy<Value = Requirement> {
        let key = prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned);
        let values =
            prop::collection::btree_set(prop_oneof![Just("x"), Just("y"), Just("z")].prop_map(str::to_owned), 1..3);
        (key, values, 0..4).prop_map(|(key, values, kind)| match kind {
            0 => Requirement::In(key, values),
            1 => Requirement::NotIn(key, values),
            2 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        })
    }

    fn selector() -> impl Strategy<Value = Selector> {
        prop::collection::vec(requirement(), 0..3).prop_map(Selector::new)
    }

    fn labels() -> impl Strategy<Value = Labels> {
        let value = || prop_oneof![Just("x"), Just("y"), Just("z")].prop_map(str::to_owned);
        let key = prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned);
        prop::collection::btree_map(key, value(), 0..3)
    }

    fn selection() -> impl Strategy<Value = PodSelection> {
        let name = || NamespaceName::new("n").expect("name");
        let namespaces = prop_oneof![Just(Namespaces::Named(name())), selector().prop_map(Namespaces::Matching)];
        (namespaces, selector()).prop_map(|(namespaces, pods)| PodSelection { namespaces, pods })
    }

    /// What asking the selection itself says, of labels that are known or not.
    fn asked(selection: &PodSelection, scope: &Scope<'_>, labels: Option<&Labels>) -> Option<Certainty> {
        let pods = match labels {
            Some(labels) => Some(selection.pods.selects(labels)),
            None => selection.pods.is_everything().then_some(true),
        };
        match (scope.is_among(&selection.namespaces), pods) {
            (Some(false), _) | (_, Some(false)) => None,
            (Some(true), Some(true)) => Some(Certainty::Certain),
            _ => Some(Certainty::Possible),
        }
    }

    proptest! {
        #[test]
        fn finds_what_asking_each_finds(
            selections in prop::collection::vec(selection(), 0..12),
            gone in prop::collection::vec(any::<bool>(), 12),
            (namespace_labels, pod_labels) in (labels(), labels()),
            (labels_known, pod_known) in (any::<bool>(), any::<bool>()),
        ) {
            let name = NamespaceName::new("n").expect("name");
            let namespace = NamespaceRecord { labels: Arc::new(namespace_labels), ..NamespaceRecord::unlabelled(name) };
            let scope = Scope { record: Cow::Owned(namespace), labels_known };
            let labels = pod_known.then_some(&pod_labels);
            let mut index = PodIndex::default();
            selections.iter().enumerate().for_each(|(number, selection)| index.insert(selection, number));
            for (number, selection) in selections.iter().enumerate().filter(|(number, _)| gone[*number]) {
                index.remove(selection, &number);
            }
            let mut found = BTreeSet::new();
            index.for_each_match(&scope, labels, &mut |number, certainty| {
                found.insert((*number, certainty));
            });
            let left = selections.iter().enumerate().filter(|(number, _)| !gone[*number]);
            let expected: BTreeSet<(usize, Certainty)> =
                left.filter_map(|(number, selection)| Some((number, asked(selection, &scope, labels)?))).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
