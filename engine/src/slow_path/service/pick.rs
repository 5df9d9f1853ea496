//! What the stage says of a pick: to the worker, which counts and remembers it, and to whoever reads the trail.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{By, Why};
use crate::slow_path::Masquerade;
use crate::tables::services::{FrontendKind, ServiceId};

/// What is to be counted and remembered once the connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The Service's port.
    pub service: ServiceId,
    /// The client.
    pub client: IpAddr,
    /// Address and port of the endpoint.
    pub endpoint: (IpAddr, u16),
    /// How long the client is to stay with it, if it is.
    pub affinity: Option<Duration>,
    /// What picked it.
    pub by: By,
    /// Whether another endpoint did not answer.
    pub again: bool,
}

/// The same for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked {
    /// Name of the Service's port.
    pub service: Arc<str>,
    /// What sort of address was called.
    pub kind: FrontendKind,
    /// Name of the endpoint.
    pub endpoint: Arc<str>,
    /// Its address and port.
    pub address: SocketAddr,
    /// Why this one.
    pub why: Why,
    /// Why the source must become the node's, if it must.
    pub masquerade: Option<Masquerade>,
}

impl fmt::Display for Picked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Picked { service, kind, endpoint, address, why, masquerade } = self;
        write!(formatter, "{service} {} to {endpoint} {address} ({why})", kind.name())?;
        match masquerade {
            Some(reason) => write!(formatter, ", masquerade: {}", reason.name()),
            None => Ok(()),
        }
    }
}
