//! Looking keys up that come in order: by one walk over an ordered map, instead of a descent for each.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

/// A place in an ordered map that only moves on.
#[derive(Debug)]
pub struct Cursor<'a, K, V> {
    rest: Peekable<btree_map::Iter<'a, K, V>>,
}

impl<'a, K: Ord, V> Cursor<'a, K, V> {
    /// At the first key.
    #[must_use]
    pub fn over(map: &'a BTreeMap<K, V>) -> Self {
        Self { rest: map.iter().peekable() }
    }

    /// The value of `key`, which must not be less than any key asked for before; an earlier one is not found.
    pub fn find(&mut self, key: &K) -> Option<&'a V> {
        loop {
            let (at, value) = *self.rest.peek()?;
            match at.cmp(key) {
                Ordering::Less => drop(self.rest.next()),
                Ordering::Equal => return Some(value),
                Ordering::Greater => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_lookup_finds() {
        let map = BTreeMap::from([(1, 'a'), (3, 'c'), (4, 'd'), (9, 'i')]);
        let mut cursor = Cursor::over(&map);
        for key in [0, 1, 1, 2, 4, 5, 9, 10] {
            assert_eq!(cursor.find(&key), map.get(&key), "{key}");
        }
        assert_eq!(Cursor::over(&BTreeMap::<u8, u8>::new()).find(&1), None);
    }
}
