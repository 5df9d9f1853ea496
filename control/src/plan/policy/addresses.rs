//! Whose each address is, and with it what is known of it.
//!
//! A pod plugged in here has its addresses whatever objects say: the switch itself lets nobody else use them. Else a
//! node's address is the node's; else the first pod by name whose status has it. Two pods with one address are seen
//! while one ends and the next begins.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use millrace_engine::tables::policy::{Identity, IdentityTable};

use crate::cluster::{NodeName, PodName};
use crate::plan::POD_SEGMENT;

/// Who says an address is theirs; the least has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// A pod that is plugged in here.
    Attached(PodName),
    /// A node.
    Node(NodeName),
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
    claims: HashMap<IpAddr, Claims>,
    identities: HashMap<Claimant, Known>,
    /// Identities in use, so that pods that no policy tells apart share one.
    shared: HashSet<Arc<Identity>>,
    /// Size of `shared` at which those without users are cleared out.
    clear_at: usize,
    dirty: HashSet<IpAddr>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Box<[IpAddr]>,
    /// `None`: in no set and without named ports, like an address that is nobody's.
    identity: Option<Arc<Identity>>,
}

impl Addresses {
    /// Says what a claimant's addresses and identity are now; no address takes the claims back.
    pub(super) fn set(&mut self, claimant: &Claimant, addresses: &[IpAddr], identity: Identity) {
        let identity = self.share(identity);
        let before = self.identities.get(claimant);
        if before.is_some_and(|known| *known.addresses == *addresses && known.identity == identity)
            || (before.is_none() && addresses.is_empty())
        {
            return;
        }
        let before = self.identities.remove(claimant);
        let old = before.map(|known| known.addresses).unwrap_or_default();
        for address in old.iter().filter(|address| !addresses.contains(address)) {
            self.withdraw(*address, claimant);
        }
        for address in addresses.iter().filter(|address| !old.contains(address)) {
            self.claim(*address, claimant);
        }
        self.dirty.extend(old.iter().chain(addresses));
        if !addresses.is_empty() {
            self.identities.insert(claimant.clone(), Known { addresses: addresses.into(), identity });
        }
    }

    fn share(&mut self, identity: Identity) -> Option<Arc<Identity>> {
        if identity.sets.is_empty() && identity.named_ports.is_empty() {
            return None;
        }
        if let Some(known) = self.shared.get(&identity) {
            return Some(Arc::clone(known));
        }
        if self.shared.len() >= self.clear_at {
            self.shared.retain(|identity| Arc::strong_count(identity) > 1);
            self.clear_at = (self.shared.len() * 2).max(1024);
        }
        let identity = Arc::new(identity);
        self.shared.insert(Arc::clone(&identity));
        Some(identity)
    }

    fn claim(&mut self, address: IpAddr, claimant: &Claimant) {
        match self.claims.get_mut(&address) {
            None => drop(self.claims.insert(address, Claims::One(claimant.clone()))),
            Some(Claims::Many(claimants)) => {
                claimants.push(claimant.clone());
                claimants.sort_unstable();
            }
            Some(one @ Claims::One(_)) => {
                let mut claimants = vec![claimant.clone()];
                if let Claims::One(first) = one {
                    claimants.push(first.clone());
                }
                claimants.sort_unstable();
                *one = Claims::Many(claimants);
            }
        }
    }

    fn withdraw(&mut self, address: IpAddr, claimant: &Claimant) {
        if let Some(Claims::Many(claimants)) = self.claims.get_mut(&address) {
            claimants.retain(|one| one != claimant);
            if !claimants.is_empty() {
                return;
            }
        }
        self.claims.remove(&address);
    }

    /// Brings the table into step with what was set since the last time.
    pub(super) fn apply(&mut self, table: &mut IdentityTable) {
        for address in std::mem::take(&mut self.dirty) {
            let owner = self.claims.get(&address).and_then(|claims| match claims {
                Claims::One(claimant) => Some(claimant),
                Claims::Many(claimants) => claimants.first(),
            });
            let identity = owner.and_then(|owner| self.identities.get(owner)?.identity.clone());
            if table.get(POD_SEGMENT, address) != identity.as_ref() {
                table.set(POD_SEGMENT, address, identity);
            }
        }
    }
}
