//! Which of many selectors select an object, without asking each.
//!
//! A selector that demands a value of a label is found by that label and value; only selectors that demand none
//! (`Exists`, `NotIn`, or nothing) are asked every time. What is found is asked in full. An object with five labels
//! costs five lookups and the selectors that share a label with it.

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

    /// Calls `visit` with every value; one whose selector demands one of several values comes several times.
    fn for_each(&self, visit: &mut dyn FnMut(&T)) {
        let by_label = self.by_label.values().flat_map(HashMap::values);
        by_label.chain([&self.others]).flatten().for_each(|(_, value)| visit(value));
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

    fn for_each_scope(&self, namespace: &NamespaceRecord, visit: &mut dyn FnMut(&LabelIndex<T>)) {
        if let Some(index) = self.named.get(&namespace.name) {
            visit(index);
        }
        self.matching.for_each_match(&namespace.labels, &mut |place| visit(&self.scopes[*place]));
    }

    /// Calls `visit` with the value of each selection that has a pod with these labels in this namespace.
    pub(super) fn for_each_match(&self, namespace: &NamespaceRecord, labels: &Labels, visit: &mut dyn FnMut(&T)) {
        self.for_each_scope(namespace, &mut |scope| scope.for_each_match(labels, visit));
    }

    /// Calls `visit` with the value of each selection that may have a pod of this namespace, whatever its labels.
    pub(super) fn for_each_possible(&self, namespace: &NamespaceRecord, visit: &mut dyn FnMut(&T)) {
        self.for_each_scope(namespace, &mut |scope| scope.for_each(visit));
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

    proptest! {
        #[test]
        fn finds_what_asking_each_finds(
            selections in prop::collection::vec(selection(), 0..12),
            gone in prop::collection::vec(any::<bool>(), 12),
            (namespace_labels, pod_labels) in (labels(), labels()),
        ) {
            let name = NamespaceName::new("n").expect("name");
            let namespace = NamespaceRecord { labels: Arc::new(namespace_labels), ..NamespaceRecord::unlabelled(name) };
            let mut index = PodIndex::default();
            selections.iter().enumerate().for_each(|(number, selection)| index.insert(selection, number));
            for (number, selection) in selections.iter().enumerate().filter(|(number, _)| gone[*number]) {
                index.remove(selection, &number);
            }
            let mut found = Vec::new();
            index.for_each_match(&namespace, &pod_labels, &mut |number| found.push(*number));
            found.sort_unstable();
            let in_scope = |selection: &PodSelection| match &selection.namespaces {
                Namespaces::Named(_) => true,
                Namespaces::Matching(selector) => selector.selects(&namespace.labels),
            };
            let left = || selections.iter().enumerate().filter(|(number, selection)| !gone[*number] && in_scope(selection));
            let expected: Vec<usize> =
                left().filter(|(_, selection)| selection.pods.selects(&pod_labels)).map(|(number, _)| number).collect();
            prop_assert_eq!(found, expected);
            let mut possible = BTreeSet::new();
            index.for_each_possible(&namespace, &mut |number| { possible.insert(*number); });
            prop_assert_eq!(possible, left().map(|(number, _)| number).collect());
        }
    }
}
