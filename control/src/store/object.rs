//! An object: its key, its version, its content and where it was written.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::document::Located;
use super::fields::FieldError;
use crate::stable_hash::ContentHash;

/// API group of the project's own objects.
pub const OUR_GROUP: &str = "millrace.dev";

/// Kinds without a namespace, of those this program meets.
const CLUSTER_SCOPED: [&str; 8] =
    ["Node", "Namespace", "Uplink", "IpPool", "IpBlock", "Network", "ServiceCIDR", "ClusterNetworkPolicy"];

/// Kinds that live in the namespace `default` if none is written, as clients of an API server have it.
const NAMESPACED: [&str; 8] =
    ["Pod", "StatefulSet", "Service", "EndpointSlice", "NetworkPolicy", "ConfigMap", "Lease", "ServiceAccount"];

/// Longest name that fits a file of the directory store with its prefix (255 bytes in all).
const NAME_BYTES: usize = 190;

/// What sort of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// `v1`, `millrace.dev/v1alpha1`.
    pub api_version: Cow<'static, str>,
    /// `Pod`, `IpPool`.
    pub kind: Cow<'static, str>,
}

impl Kind {
    /// A kind known when this was written.
    #[must_use]
    pub const fn new(api_version: &'static str, kind: &'static str) -> Self {
        Self { api_version: Cow::Borrowed(api_version), kind: Cow::Borrowed(kind) }
    }

    /// The API group: what precedes the slash; empty for the core group.
    #[must_use]
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

/// What names an object in a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for kinds without.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object without a namespace.
    #[must_use]
    pub fn cluster_scoped(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, namespace: None, name: name.into() }
    }

    /// Reads the key out of an object.
    pub fn read(object: &Located) -> Result<Self, FieldError> {
        let text = |path: &[&str]| match object.at(path) {
            Some(value) => match value.text().filter(|text| !text.is_empty()) {
                Some(text) => Ok(text.to_owned()),
                None => Err(FieldError::at(object, path, "must be a text that is not empty")),
            },
            None => Err(FieldError::at(object, path, "is missing")),
        };
        let kind = Kind { api_version: Cow::Owned(text(&["apiVersion"])?), kind: Cow::Owned(text(&["kind"])?) };
        let name = text(&["metadata", "name"])?;
        let path = ["metadata", "name"];
        dns_subdomain(&name).map_err(|message| FieldError::at(object, &path, format!("{name:?} {message}")))?;
        let path = ["metadata", "namespace"];
        let mut namespace = object.at(&path).map(|_| text(&path)).transpose()?;
        if let Some(given) = &namespace {
            dns_label(given).map_err(|message| FieldError::at(object, &path, format!("{given:?} {message}")))?;
            if CLUSTER_SCOPED.contains(&kind.kind.as_ref()) {
                return Err(FieldError::at(object, &path, format!("kind {} has no namespace", kind.kind)));
            }
        } else if NAMESPACED.contains(&kind.kind.as_ref()) {
            namespace = Some("default".to_owned());
        }
        Ok(Self { kind, namespace, name })
    }

    /// Name of the file the directory store writes for this object alone: `millrace.dev_v1alpha1.ipblock.NAME.yaml`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let version = self.kind.api_version.replace('/', "_");
        let kind = self.kind.kind.to_ascii_lowercase();
        match &self.namespace {
            Some(namespace) => format!("{version}.{kind}.{namespace}.{}.yaml", self.name),
            None => format!("{version}.{kind}.{}.yaml", self.name),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ", self.kind.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(formatter, "{namespace}/")?;
        }
        formatter.write_str(&self.name)
    }
}

/// Whether `name` is a DNS label (RFC 1123 section 2.1), as namespaces are.
pub(crate) fn dns_label(name: &str) -> Result<(), &'static str> {
    let edges = |name: &str| !name.starts_with('-') && !name.ends_with('-');
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 63 || !edges(name) || !name.bytes().all(allowed) {
        return Err("is not a DNS label (a-z, 0-9 and '-', at most 63 characters)");
    }
    Ok(())
}

/// Whether `name` is a DNS subdomain, as names of objects are.
pub(crate) fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > NAME_BYTES {
        return Err("is longer than 190 characters");
    }
    if name.split('.').any(|label| dns_label(label).is_err()) {
        return Err("is not a DNS subdomain (labels of a-z, 0-9 and '-', separated by dots)");
    }
    Ok(())
}

/// Where an object was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file, relative to the directory of the store.
    pub file: Arc<str>,
    /// First line of the document.
    pub line: u32,
}

/// An object as a store returns it. Cloning shares the content.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What names it.
    pub key: ObjectKey,
    /// Its version: opaque, to be handed back with a write.
    pub resource_version: Arc<str>,
    /// Its content.
    pub content: Arc<Located>,
    /// Where it was written, if in a file.
    pub origin: Option<Origin>,
}

impl Object {
    /// The object in this document, with its content as version.
    pub fn read(content: Located, origin: Option<Origin>) -> Result<Self, FieldError> {
        let key = ObjectKey::read(&content)?;
        let resource_version = content_version(&content);
        Ok(Self { key, resource_version, content: Arc::new(content), origin })
    }

    /// The content without lines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::Value::from(self.content.as_ref())
    }
}

/// The version of an object without a server: a hash of its content, so that the same content in another file, in
/// another order or with other comments is the same version. A change and its exact undoing give the version before:
/// a writer that compares versions compares contents.
fn content_version(content: &Located) -> Arc<str> {
    let mut hash = ContentHash::default();
    content.hash_into(&mut hash);
    format!("{:032x}", hash.finish()).into()
}
