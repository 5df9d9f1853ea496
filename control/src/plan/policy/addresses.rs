//! Whose each address of each segment is, and with it what is known of it.
//!
//! A pod plugged in here has its addresses whatever objects say: the switch itself lets nobody else use them. Else a
//! node's address is the node's; else that of a pod whose status has it, of several the one that
//! [`PodRecord::precedence`] puts first. Two pods with one address are seen while one ends and the next begins.
//!
//! [`PodRecord::precedence`]: crate::cluster::PodRecord::precedence

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::SegmentIndex;
use millrace_engine::tables::policy::{Identity, IdentityTable};

use crate::cluster::{NodeName, PodName, PodPrecedence};

/// Who says an address is theirs; the first sort has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// The pod that is plugged in at this port.
    Attached(PortIndex),
    /// A node, by its addresses in this segment.
    Node(NodeName, SegmentIndex),
    /// A pod, by its status.
    Pod(PodName),
}

/// Claims on one address: one, nearly always.
#[derive(Clone, Debug)]
enum Claims {
    One(Claimant),
    Many(Vec<Claimant>),
}

/// All claims, and who the claimants are.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    claims: HashMap<Place, Claims>,
    identities: HashMap<Claimant, Known>,
    /// Identities in use, so that pods that no policy tells apart share one.
    shared: HashSet<Arc<Identity>>,
    /// Size of `shared` at which those without users are cleared out.
    clear_at: usize,
    dirty: HashSet<Place>,
}

/// An address where it means something.
type Place = (SegmentIndex, IpAddr);

#[derive(Clone, Debug)]
struct Known {
    segment: SegmentIndex,
    addresses: Box<[IpAddr]>,
    /// Among pods by their status.
    precedence: PodPrecedence,
    identity: Arc<Identity>,
}

impl Claimant {
    /// Its sort, the first first.
    const fn sort(&self) -> u8 {
        match self {
            Claimant::Attached(_) => 0,
            Claimant::Node(..) => 1,
            Claimant::Pod(_) => 2,
        }
    }
}

impl Addresses {
    /// Says what a claimant's addresses and identity are now; no address takes the claims back. `precedence` counts
    /// among pods.
    pub(super) fn set(
        &mut self,
        claimant: &Claimant,
        (segment, addresses): (SegmentIndex, &[IpAddr]),
        precedence: PodPrecedence,
        identity: Identity,
    ) {
        let before = self.identities.get(claimant);
        let is_same = |known: &Known| {
            known.segment == segment
                && *known.addresses == *addresses
                && known.precedence == precedence
                && *known.identity == identity
        };
        if before.is_some_and(is_same) || (before.is_none() && addresses.is_empty()) {
            return;
        }
        let identity = self.share(identity);
        let before = self.identities.remove(claimant);
        let places = |segment, addresses: &[IpAddr]| addresses.iter().map(|address| (segment, *address)).collect();
        let old: Vec<Place> = before.map(|known| places(known.segment, &known.addresses)).unwrap_or_default();
        let new: Vec<Place> = places(segment, addresses);
        for place in old.iter().filter(|place| !new.contains(place)) {
            self.withdraw(*place, claimant);
        }
        for place in new.iter().filter(|place| !old.contains(place)) {
            self.claim(*place, claimant);
        }
        self.dirty.extend(old.iter().chain(&new));
        if !addresses.is_empty() {
            let known = Known { segment, addresses: addresses.into(), precedence, identity };
            self.identities.insert(claimant.clone(), known);
        }
    }

    fn share(&mut self, identity: Identity) -> Arc<Identity> {
        if let Some(known) = self.shared.get(&identity) {
            return Arc::clone(known);
        }
        if self.shared.len() >= self.clear_at {
            self.shared.retain(|identity| Arc::strong_count(identity) > 1);
            self.clear_at = (self.shared.len() * 2).max(1024);
        }
        let identity = Arc::new(identity);
        self.shared.insert(Arc::clone(&identity));
        identity
    }

    fn claim(&mut self, place: Place, claimant: &Claimant) {
        match self.claims.get_mut(&place) {
            None => drop(self.claims.insert(place, Claims::One(claimant.clone()))),
            Some(Claims::Many(claimants)) => claimants.push(claimant.clone()),
            Some(one @ Claims::One(_)) => {
                let mut claimants = vec![claimant.clone()];
                if let Claims::One(first) = one {
                    claimants.push(first.clone());
                }
                *one = Claims::Many(claimants);
            }
        }
    }

    fn withdraw(&mut self, place: Place, claimant: &Claimant) {
        if let Some(Claims::Many(claimants)) = self.claims.get_mut(&place) {
            claimants.retain(|one| one != claimant);
            if !claimants.is_empty() {
                return;
            }
        }
        self.claims.remove(&place);
    }

    /// Brings the table into step with what was set since the last time.
    pub(super) fn apply(&mut self, table: &mut IdentityTable) {
        for place in std::mem::take(&mut self.dirty) {
            let known = |claimant| Some((claimant, self.identities.get(claimant)?));
            let owner = self.claims.get(&place).and_then(|claims| match claims {
                Claims::One(claimant) => known(claimant),
                Claims::Many(claimants) => {
                    let order =
                        |(claimant, of): &(&Claimant, &Known)| (claimant.sort(), of.precedence, (*claimant).clone());
                    claimants.iter().filter_map(known).min_by_key(order)
                }
            });
            let identity = owner.map(|(_, known)| Arc::clone(&known.identity));
            let (segment, address) = place;
            if table.get(segment, address) != identity.as_ref() {
                table.set(segment, address, identity);
            }
        }
    }
}
