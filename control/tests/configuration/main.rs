//! The path of configuration as a whole: files in, tables out, through the public interface only.

mod address_agreement;
mod address_claims;
mod address_crowd;
mod address_faults;
mod address_vanished;
mod announcement;
mod directory;
mod incremental;
mod invalid_objects;
mod node_plan;
mod node_ports;
mod order;
mod policies;
mod services;
mod support;
mod tenants;
