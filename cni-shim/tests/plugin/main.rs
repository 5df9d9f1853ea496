//! The plugin from the runtime's side: what it prints for each version, each error and each kind of agent.

#![forbid(unsafe_code)]

mod answers;
mod caller;
mod deployed;
mod errors;
mod misbehaving_agents;
mod random_input;
mod verbs;
