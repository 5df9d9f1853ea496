//! The control plane of Millrace, in the order a change of configuration travels.
//!
//! Objects come in from a [`store`], are read by [`observe`] into the plain types of [`cluster`], [`plan`] says what
//! this node needs, [`compile`] turns that into the engine's tables and [`publish`] puts them into force.
//! [`reconcile`] runs the path; each step is a function of the present state, never of how it came about.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod compile;
pub mod ipam;
pub mod kernel;
pub mod observe;
pub mod plan;
pub mod problem;
pub mod publish;
pub mod reconcile;
pub mod stable_hash;
pub mod store;
