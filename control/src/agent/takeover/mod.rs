//! Hitless replacement: a new agent takes over from the one that runs, and no packet is lost.
//!
//! The successor (`taking.rs`) makes itself ready beside the running agent (`giving.rs`): objects, tables, ports made of the
//! other's descriptors, all but workers that run. Then the running one stands still, the successor takes in what changed
//! meanwhile and starts its workers, and the running one ends by [`std::process::exit`]: nothing is detached, given back or
//! removed. What they say is in `message.rs`. If the successor dies, is silent or refuses, the running one kills it, so that
//! never two take packets from one queue, and goes on.
//!
//! While it lasts the running agent accepts no calls (they wait in the socket's queue, for the successor), changes no
//! interface, and publishes tables as ever. All on threads of their own.

mod giving;
mod inherited;
pub mod message;
mod taking;

pub(super) use giving::Giver;
pub(super) use inherited::{Inherited, InheritedPort};
pub(super) use taking::Takeover;
