//! What an address is, as far as any rule can tell: the sets it is in and the ports it has names for.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::tables::SegmentIndex;

/// A set of peers that some rule speaks of: `app=web in default`, `10.0.0.0/8 except 10.1.0.0/16`.
///
/// Its text is its content: two rules that speak of the same set have equal texts. The hash in front makes comparing
/// two different sets a comparison of numbers, nearly always; the text decides, so that no chosen text can pass for
/// another.
#[derive(Clone)]
pub struct PeerSet {
    hash: u64,
    text: Arc<str>,
}

impl PeerSet {
    /// The set with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        // FNV-1a: for order only, see above.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self { hash, text: text.into() }
    }

    /// Its text, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PeerSet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || (self.hash == other.hash && self.text == other.text)
    }
}

impl Eq for PeerSet {}

impl Ord for PeerSet {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.text, &other.text) {
            return Ordering::Equal;
        }
        self.hash.cmp(&other.hash).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for PeerSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::hash::Hash for PeerSet {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl fmt::Debug for PeerSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// A port that a pod gives a name to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// What the policies in force can tell of an address. All lists are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Sets it is a member of.
    pub sets: Box<[PeerSet]>,
    /// Sets it may be a member of: labels that decide are not known yet.
    pub possible: Box<[PeerSet]>,
    /// Named ports of its pod that some rule asks for.
    pub named_ports: Box<[NamedPort]>,
    /// Whether its pod may have other named ports: they are not known yet.
    pub ports_unknown: bool,
}

impl Identity {
    /// Whether it is a member of `set`.
    #[must_use]
    pub fn is_in(&self, set: &PeerSet) -> bool {
        self.sets.binary_search(set).is_ok()
    }

    /// Whether it may be a member of `set`, for all that is known.
    #[must_use]
    pub fn may_be_in(&self, set: &PeerSet) -> bool {
        self.possible.binary_search(set).is_ok()
    }
}

/// Chunks of the table: a change copies one chunk and 32 KiB of pointers to all.
const CHUNKS: usize = 4096;

type Entry = ((SegmentIndex, u128), Arc<Identity>);

/// Identities by segment and address: exact match. An address whose pod or node is known has one, if an empty one. A chunk is found by mixing the address, an entry in it by binary
/// search, so the table's shape depends on its content alone; at 100,000 addresses a chunk has 25.
#[derive(Clone)]
pub struct IdentityTable {
    chunks: Arc<[Arc<Vec<Entry>>]>,
    entries: usize,
}

impl Default for IdentityTable {
    fn default() -> Self {
        let empty = Arc::new(Vec::new());
        Self { chunks: (0..CHUNKS).map(|_| Arc::clone(&empty)).collect(), entries: 0 }
    }
}

impl fmt::Debug for IdentityTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.chunks.iter().flat_map(|chunk| chunk.iter());
        formatter
            .debug_map()
            .entries(entries.map(|((segment, bits), identity)| ((segment, address(*bits)), identity)))
            .finish()
    }
}

/// IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), which no packet carries as an IPv6 address.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128) -> IpAddr {
    IpAddr::V6(bits.into()).to_canonical()
}

fn chunk_of(segment: SegmentIndex, bits: u128) -> usize {
    let folded = (bits >> 64) as u64 ^ (bits as u64).rotate_left(32) ^ u64::from(segment.0) << 17;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % CHUNKS
}

impl IdentityTable {
    /// The identity of `address`, if it is a pod's or a node's.
    #[must_use]
    pub fn get(&self, segment: SegmentIndex, address: IpAddr) -> Option<&Arc<Identity>> {
        let key = (segment, bits(address));
        let chunk = self.chunks.get(chunk_of(segment, key.1))?;
        let at = chunk.binary_search_by_key(&key, |entry| entry.0).ok()?;
        chunk.get(at).map(|(_, identity)| identity)
    }

    /// Gives `address` an identity, or takes it away. Many changes to one clone of a table copy each chunk once.
    pub fn set(&mut self, segment: SegmentIndex, address: IpAddr, identity: Option<Arc<Identity>>) {
        let key = (segment, bits(address));
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[chunk_of(segment, key.1)]);
        match (chunk.binary_search_by_key(&key, |entry| entry.0), identity) {
            (Ok(at), Some(identity)) => chunk[at].1 = identity,
            (Ok(at), None) => {
                chunk.remove(at);
                self.entries -= 1;
            }
            (Err(at), Some(identity)) => {
                chunk.insert(at, (key, identity));
                self.entries += 1;
            }
            (Err(_), None) => {}
        }
    }

    /// How many addresses have an identity.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether no address has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// Calls `visit` with each address, and its identities here and in `other`, where the two are not one and the
    /// same; shared chunks are skipped without a look.
    pub fn for_each_difference(
        &self,
        other: &Self,
        mut visit: impl FnMut(SegmentIndex, IpAddr, Option<&Identity>, Option<&Identity>),
    ) {
        if self.is_same(other) {
            return;
        }
        for (before, after) in self.chunks.iter().zip(other.chunks.iter()) {
            if !Arc::ptr_eq(before, after) {
                chunk_differences(before, after, &mut visit);
            }
        }
    }
}

fn chunk_differences(
    before: &[Entry],
    after: &[Entry],
    visit: &mut impl FnMut(SegmentIndex, IpAddr, Option<&Identity>, Option<&Identity>),
) {
    let (mut left, mut right) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(two)) => one.0.cmp(&two.0),
        };
        let old = if order.is_le() { left.next() } else { None };
        let new = if order.is_ge() { right.next() } else { None };
        let same = matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(&old.1, &new.1));
        if let Some((segment, bits)) = old.or(new).map(|entry| entry.0)
            && !same
        {
            visit(segment, address(bits), old.map(|entry| entry.1.as_ref()), new.map(|entry| entry.1.as_ref()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Arc<Identity> {
        Arc::new(Identity { sets: [PeerSet::new(text)].into(), ..Identity::default() })
    }

    #[test]
    fn both_families_and_segments_are_apart_and_differences_are_found() {
        let mut table = IdentityTable::default();
        let (four, six): (IpAddr, IpAddr) = ("10.1.0.5".parse().expect("v4"), "fd00::5".parse().expect("v6"));
        table.set(SegmentIndex(0), four, Some(identity("a")));
        table.set(SegmentIndex(1), four, Some(identity("b")));
        table.set(SegmentIndex(0), six, Some(identity("c")));
        let text = |table: &IdentityTable, segment, address| {
            table.get(SegmentIndex(segment), address).map(|identity| identity.sets[0].text().to_owned())
        };
        assert_eq!(text(&table, 0, four).as_deref(), Some("a"));
        assert_eq!(text(&table, 1, four).as_deref(), Some("b"));
        assert_eq!(text(&table, 1, six), None);
        let mut changed = table.clone();
        changed.set(SegmentIndex(0), six, None);
        changed.set(SegmentIndex(1), four, Some(identity("d")));
        let mut seen = Vec::new();
        table.for_each_difference(&changed, |segment, address, old, new| {
            seen.push((segment.0, address, old.is_some(), new.is_some()));
        });
        seen.sort_unstable();
        assert_eq!(seen, [(0, six, true, false), (1, four, true, true)]);
        assert_eq!((table.len(), changed.len()), (3, 2));
    }

    #[test]
    fn sets_are_told_apart_by_their_text() {
        let (one, two) = (PeerSet::new("app=web in default"), PeerSet::new("app=web in other"));
        assert_ne!(one, two);
        assert_eq!(one, PeerSet::new("app=web in default"));
        let mut sets = [one.clone(), two.clone()];
        sets.sort_unstable();
        let identity = Identity { sets: sets.into(), ..Identity::default() };
        assert!(identity.is_in(&one) && identity.is_in(&two) && !identity.is_in(&PeerSet::new("x")));
    }
}
