//! May this packet be here? Asked of the objects of a view, never of tables.
//!
//! Policies are read by the oracle that the engine's verdicts are held against elsewhere (`policies::oracle`), Services and
//! networks by the few lines below. A packet is judged by what its node has been told, exactly: it is lawful if one of
//! the views lets it pass by which the node may judge at that moment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_control::observe::{ENDPOINT_SLICE, SERVICE};
use millrace_control::store::ObjectKey;
use millrace_tests::policies::{Flow, oracle};

use crate::view::View;

/// Whether a view lets this flow pass in a network.
///
/// # Errors
/// Which end denies it.
pub(crate) fn allowed(view: &View, network: usize, flow: Flow) -> Result<(), String> {
    let (objects, node) = view.about(network, [flow.source, flow.destination]);
    oracle::allowed_of(&objects, &node, flow)
}

/// A packet between two pods: by which flow it may pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) network: usize,
    /// The connection that the packet is part of, from who opened it.
    pub(crate) flow: Flow,
    /// The packet itself, if it is an answer: where its node does not know the connection, it is judged as it is.
    pub(crate) answer: Option<Flow>,
}

/// Whether one of the views lets the packet pass.
///
/// # Errors
/// What the newest view says against it.
pub(crate) fn lawful<'a>(views: impl Iterator<Item = &'a View>, question: Question) -> Result<(), String> {
    let mut said = "no tables are in force".to_owned();
    for view in views {
        for flow in [Some(question.flow), question.answer].into_iter().flatten() {
            match allowed(view, question.network, flow) {
                Ok(()) => return Ok(()),
                Err(why) => said = why,
            }
        }
    }
    Err(said)
}

/// Addresses of the endpoints of a Service of the namespace `default`, as a view has them; none if there is no Service.
pub(crate) fn endpoints(view: &View, service: &str) -> BTreeSet<IpAddr> {
    let key = |kind, name: &str| ObjectKey { kind, namespace: Some("default".to_owned()), name: name.to_owned() };
    if view.get(&key(SERVICE, service)).is_none() {
        return BTreeSet::new();
    }
    let Some(slice) = view.get(&key(ENDPOINT_SLICE, &format!("{service}-four"))) else { return BTreeSet::new() };
    let listed = slice["endpoints"].as_array().into_iter().flatten();
    listed.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok()).collect()
}
