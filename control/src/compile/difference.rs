//! What differs between two ordered maps, by one walk over both.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Calls `visit` with each key whose value differs, and the new value; `None` if the key is gone.
pub(super) fn differences<K: Ord, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    mut visit: impl FnMut(&K, Option<&V>),
) {
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let gone = if order.is_le() { before.next() } else { None };
        let present = if order.is_ge() { after.next() } else { None };
        match (gone, present) {
            (Some((_, left)), Some((key, right))) if left != right => visit(key, Some(right)),
            (None, Some((key, right))) => visit(key, Some(right)),
            (Some((key, _)), None) => visit(key, None),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_came_went_and_changed() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c'), (5, 'e')]);
        let new = BTreeMap::from([(0, 'z'), (2, 'b'), (3, 'x'), (5, 'e'), (6, 'f')]);
        let mut seen = Vec::new();
        differences(&old, &new, |key, value| seen.push((*key, value.copied())));
        assert_eq!(seen, [(0, Some('z')), (1, None), (3, Some('x')), (6, Some('f'))]);
    }
}
