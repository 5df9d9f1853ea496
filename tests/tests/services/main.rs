//! Services through whole nodes: objects in, packets in, packets out.

mod balancing;
mod changes;
mod dns;
mod endpoints;
mod fragments;
mod kept;
mod masquerade;
mod matrix;
mod outside;
mod related;
mod states;
