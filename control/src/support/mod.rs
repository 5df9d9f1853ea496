//! A node's state as a directory, and packets explained by it somewhere else.
//!
//! | file | what |
//! |---|---|
//! | `objects/` | every object the agent watches, one file each: a directory store |
//! | `state.json` | [`SavedState`]: what the node knows beside its objects, and its connections |
//! | `show/*.json` | what `millrace show` tells: ports with their queues, workers, routes, neighbours, counters, drops |
//! | `drops.pcapng` | packets dropped while the bundle was written |
//!
//! [`Explainer`] builds the tables from the objects by the reconciler itself, gives them the generation they had, takes the
//! connections in and stands the clock where it stood. Secrets are no part of it: the agent never watches them. What
//! picks at random (an endpoint where a Service balances so, the port of a new masquerade) does so by a key that stays with
//! the agent, so there, and only there, another choice may be told.

mod explainer;
mod local;
mod saved;

pub use explainer::{Explainer, SupportError};
pub use saved::SavedState;
