//! The local API over a real unix socket: the plugin, the command line, and clients that misbehave.

#![forbid(unsafe_code)]

mod bounds;
mod command_line;
mod pages;
mod plugin;
mod policy;
mod socket;
mod test_agent;
