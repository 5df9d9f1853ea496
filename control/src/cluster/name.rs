//! Names: each sort its own type, checked when made, cheap to clone.

use std::fmt;
use std::sync::Arc;

use crate::store;

/// Why a text is not such a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {reason}")]
pub struct NameError {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn checked(name: &str, check: fn(&str) -> Result<(), &'static str>) -> Result<Arc<str>, NameError> {
    check(name).map(|()| Arc::from(name)).map_err(|reason| NameError { name: name.to_owned(), reason })
}

macro_rules! names {
    ($($(#[$documentation:meta])* $name:ident checked by $check:path;)*) => {$(
        $(#[$documentation])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name, if the text is one.
            pub fn new(name: &str) -> Result<Self, NameError> {
                checked(name, $check).map(Self)
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// Name of a node: a DNS subdomain.
    NodeName checked by store::dns_subdomain;
    /// Name of a namespace: a DNS label.
    NamespaceName checked by store::dns_label;
    /// Name of an uplink object.
    UplinkName checked by store::dns_subdomain;
    /// Name of an address pool.
    PoolName checked by store::dns_subdomain;
    /// Name of an address block.
    BlockName checked by store::dns_subdomain;
    /// Name of an object with ranges of Services' addresses.
    ServiceRangeName checked by store::dns_subdomain;
    /// Name of a network: a DNS label.
    NetworkName checked by store::dns_label;
    /// Name of a bridge.
    BridgeName checked by store::dns_subdomain;
    /// Name of a port of the standalone switch.
    PortName checked by store::dns_subdomain;
    /// Name of a network interface, as the kernel takes it.
    InterfaceName checked by interface;
}

/// `dev_valid_name` in the kernel's net/core/dev.c.
fn interface(name: &str) -> Result<(), &'static str> {
    let forbidden = |character: char| character == '/' || character == ':' || character.is_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(forbidden) {
        return Err("is not an interface name (1 to 15 bytes without '/', ':' and blanks)");
    }
    Ok(())
}

macro_rules! namespaced_names {
    ($($(#[$documentation:meta])* $name:ident;)*) => {$(
        $(#[$documentation])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            namespace: NamespaceName,
            name: Arc<str>,
        }

        impl $name {
            /// The name, if both parts are valid.
            pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
                Ok(Self { namespace: NamespaceName::new(namespace)?, name: checked(name, store::dns_subdomain)? })
            }

            /// The namespace.
            #[must_use]
            pub fn namespace(&self) -> &NamespaceName {
                &self.namespace
            }

            /// The name within the namespace.
            #[must_use]
            pub fn name(&self) -> &str {
                &self.name
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}/{}", self.namespace, self.name)
            }
        }
    )*};
}

namespaced_names! {
    /// A pod's name with its namespace.
    PodName;
    /// A Service's name with its namespace.
    ServiceName;
    /// The name of a slice of endpoints, with its namespace.
    SliceName;
}

impl PodName {
    /// A bound that comes before every pod of the namespace, in the order of names; no pod's name.
    pub(crate) fn before_all(namespace: &NamespaceName) -> Self {
        Self { namespace: namespace.clone(), name: "".into() }
    }
}
