//! An API server of Kubernetes for tests: the protocol that clients of a real one rely on, over a socket, from memory.
//!
//! What it is for: our store is tested against this program wherever no real server is at hand. It therefore knows
//! nothing of our code (it depends on no crate of ours), answers as `kubernetes.io/docs/reference/using-api/api-concepts`
//! and the server's sources say, and its own tests speak HTTP to it, not through our client; the same tests pass against
//! a real server wherever `KUBECONFIG` points at one. And it fails on demand in the ways real ones do: gone
//! for a while, streams cut in the middle of a line, versions expired, overloaded, forbidden.
//!
//! What it does: discovery; lists with `limit`/`continue` from one snapshot, all meanings of `resourceVersion` and
//! `resourceVersionMatch`; watches from a version, from nothing and with initial events; bookmarks; selectors; create,
//! update with compare-and-swap, the status subresource, JSON, merge and strategic patches, server-side apply, deletion
//! with preconditions and finalizers; resources that `CustomResourceDefinition` objects define; access by rules as of a
//! `ClusterRole`. What it does not: admission and validation of built-in kinds beyond names, schemas, controllers
//! (deleting a namespace deletes its content at once), protobuf, tables.
//!
//! - [`Emulator`]: a running server and what to do to it.
//! - `storage`: objects, one counter of versions, the log that watches read.
//! - `reading`, `watching`, `writing`: the verbs; `apply` and `patch`: how bodies become objects.
//! - `failure`: what a client is told when it may not have what it asked for.

mod access;
mod apply;
mod discovery;
mod event;
mod failure;
mod fields;
mod patch;
mod reading;
mod request;
mod resource;
mod selector;
mod server;
mod storage;
mod watching;
mod writing;

pub use access::Rule;
pub use server::{Emulator, Options};
