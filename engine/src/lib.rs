//! The packet engine of Millrace, in the order a packet meets it.
//!
//! The engine knows nothing of Kubernetes: it is given ports and compiled [`tables`], moves packets, and counts.
//! Start reading at `worker/mod.rs`.

pub mod clock;
pub mod counters;
pub mod cycles;
pub mod drop_reason;
pub mod edit;
pub mod flow_cache;
pub mod limits;
pub mod packet;
pub mod port;
mod prefetch;
pub mod processor;
pub mod slow_path;
pub mod state;
pub mod switch;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transmit;
pub mod worker;
