//! A cluster in one thread: nodes with their control planes on one store, in virtual time, from a seed.
//!
//! ```text
//! MILLRACE_SEEDS=1000 cargo test --release -p millrace-tests --test simulation -- --nocapture
//! ```
//! runs so many seeds and prints what they were; `MILLRACE_SEED=n` runs one again, `MILLRACE_NODES` and `MILLRACE_PODS` say how
//! large. Engines stand on memory ports ([`agent`]) and are joined by bad links ([`network`]); control planes follow one
//! store whose watches lag, break and are away ([`store`]); pods come and go ([`churn`]) and talk ([`traffic`]); things go
//! wrong ([`faults`]). At every tick promises are held ([`invariants`], [`delivery`]) against an oracle that reads
//! objects ([`oracle`], [`view`]), and in the end the cluster must find itself again ([`convergence`]). That each promise
//! can be found broken is shown by mistakes made on purpose ([`mutation`]).

mod actions;
mod agent;
mod churn;
mod convergence;
mod delivery;
mod faults;
mod invariants;
mod mutation;
mod network;
mod oracle;
mod report;
mod runs;
mod store;
mod tenancy;
mod traffic;
mod view;
mod wire;
mod world;
