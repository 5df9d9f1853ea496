//! An object as it comes off the wire: decoded straight into a document, without what nobody reads.
//!
//! What is dropped costs neither memory nor events. For most kinds that is what the server adds (managed fields, `uid`,
//! times); of nodes, pods and endpoint slices, which come by the ten thousand and change by themselves, only the fields
//! that `observe` reads are kept. A test there holds the two together: an object read whole and one read thus give the
//! same record.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::store::{Document, Kind, Located, Object, ObjectKey};

/// Which parts of a value are kept. A list's items are kept as the list is.
#[derive(Clone, Copy, Debug)]
enum Keep {
    /// All of it.
    All,
    /// These fields, each as said.
    Only(&'static [(&'static str, Keep)]),
    /// All fields but those with `None`; those with `Some` as said.
    Except(&'static [(&'static str, Option<Keep>)]),
}

/// What every object has: names, labels, annotations but the copy that `kubectl apply` leaves, owners, deletion.
const METADATA: Keep = Keep::Except(&[
    ("managedFields", None),
    ("uid", None),
    ("creationTimestamp", None),
    ("generation", None),
    ("selfLink", None),
    ("generateName", None),
    ("annotations", Some(Keep::Except(&[("kubectl.kubernetes.io/last-applied-configuration", None)]))),
]);

/// Of a pod also which of several of its name it is, and since when.
const POD_METADATA: Keep = Keep::Except(&[
    ("managedFields", None),
    ("generation", None),
    ("selfLink", None),
    ("generateName", None),
    ("annotations", Some(Keep::Except(&[("kubectl.kubernetes.io/last-applied-configuration", None)]))),
]);

/// Of a policy also which generation it is, for its receipt.
const POLICY: Keep = Keep::Except(&[(
    "metadata",
    Some(Keep::Except(&[
        ("managedFields", None),
        ("uid", None),
        ("creationTimestamp", None),
        ("selfLink", None),
        ("generateName", None),
        ("annotations", Some(Keep::Except(&[("kubectl.kubernetes.io/last-applied-configuration", None)]))),
    ])),
)]);

const WHOLE: Keep = Keep::Except(&[("metadata", Some(METADATA))]);

/// Without heartbeats, images and volumes.
const NODE: Keep = Keep::Only(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    ("metadata", METADATA),
    ("spec", Keep::Only(&[("podCIDR", Keep::All), ("podCIDRs", Keep::All), ("taints", Keep::All)])),
    (
        "status",
        Keep::Only(&[
            ("addresses", Keep::All),
            ("conditions", Keep::Only(&[("type", Keep::All), ("status", Keep::All)])),
        ]),
    ),
]);

const CONTAINERS: Keep = Keep::Only(&[("name", Keep::All), ("ports", Keep::All), ("restartPolicy", Keep::All)]);

const POD: Keep = Keep::Only(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    ("metadata", POD_METADATA),
    (
        "spec",
        Keep::Only(&[
            ("nodeName", Keep::All),
            ("hostNetwork", Keep::All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    (
        "status",
        Keep::Only(&[
            ("phase", Keep::All),
            ("podIP", Keep::All),
            ("podIPs", Keep::All),
            ("conditions", Keep::Only(&[("type", Keep::All), ("status", Keep::All)])),
        ]),
    ),
]);

/// Of the annotations only the one that tells when the endpoints last changed.
const SLICE: Keep = Keep::Only(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    (
        "metadata",
        Keep::Only(&[
            ("name", Keep::All),
            ("namespace", Keep::All),
            ("labels", Keep::All),
            ("resourceVersion", Keep::All),
            ("deletionTimestamp", Keep::All),
            ("annotations", Keep::Only(&[("endpoints.kubernetes.io/last-change-trigger-time", Keep::All)])),
        ]),
    ),
    ("addressType", Keep::All),
    ("ports", Keep::All),
    (
        "endpoints",
        Keep::Only(&[
            ("addresses", Keep::All),
            ("conditions", Keep::All),
            ("nodeName", Keep::All),
            ("zone", Keep::All),
            ("hints", Keep::All),
            ("targetRef", Keep::Only(&[("kind", Keep::All), ("name", Keep::All)])),
        ]),
    ),
]);

/// An object of any kind, pruned for kinds where that pays.
#[derive(Clone, Debug)]
pub(super) struct Received(Located);

impl Received {
    /// The version of the object.
    pub(super) fn version(&self) -> Option<&str> {
        self.0.at(&["metadata", "resourceVersion"])?.text()
    }

    /// The object in the store's form; `None` if it has no name, which no server sends.
    pub(super) fn object(self, kind: &Kind) -> Option<Object> {
        let Self(mut content) = self;
        let text = |content: &Located, name| Some(content.at(&["metadata", name])?.text()?.to_owned());
        let key = ObjectKey {
            kind: kind.clone(),
            namespace: text(&content, "namespace").filter(|namespace| !namespace.is_empty()),
            name: text(&content, "name")?,
        };
        let version = text(&content, "resourceVersion").unwrap_or_default();
        if let Document::Fields(fields) = &mut content.value {
            if let Some((_, metadata)) = fields.iter_mut().find(|(name, _)| name == "metadata")
                && let Document::Fields(fields) = &mut metadata.value
            {
                fields.retain(|(name, _)| name != "resourceVersion");
            }
            // Items of lists do not say what they are.
            for (name, value) in [("kind", &kind.kind), ("apiVersion", &kind.api_version)] {
                if !fields.iter().any(|(known, _)| known == name) {
                    fields.push((name.to_owned(), Located { line: 0, value: Document::Text(value.to_string()) }));
                }
            }
        }
        Some(Object { key, resource_version: version.into(), content: Arc::new(content), origin: None })
    }
}

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        WHOLE.deserialize(deserializer).map(Self)
    }
}

/// Gives `Received` for one kind: what is kept must be known before the first byte is read, and kinds come last in JSON.
macro_rules! pruned {
    ($name:ident, $keep:expr) => {
        #[derive(Clone, Debug)]
        pub(super) struct $name(Received);

        impl From<$name> for Received {
            fn from(pruned: $name) -> Self {
                pruned.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $keep.deserialize(deserializer).map(|content| Self(Received(content)))
            }
        }
    };
}

pruned!(NodeParts, NODE);
pruned!(PodParts, POD);
pruned!(SliceParts, SLICE);
pruned!(PolicyParts, POLICY);

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "Item: Deserialize<'de>"))]
pub(super) struct List<Item = Received> {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default = "Vec::new", deserialize_with = "items")]
    pub(super) items: Vec<Item>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continues: Option<String>,
}

/// An empty list is `null` with some servers.
fn items<'de, D: Deserializer<'de>, Item: Deserialize<'de>>(deserializer: D) -> Result<Vec<Item>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl<Item> List<Item> {
    /// The version the list is of.
    pub(super) fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref().filter(|version| !version.is_empty())
    }

    /// The token for the next page, if there is one.
    pub(super) fn continues(&self) -> Option<&str> {
        self.metadata.continues.as_deref().filter(|token| !token.is_empty())
    }
}

fn located(value: Document) -> Located {
    Located { line: 0, value }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Located;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Located, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Located;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Located, E> {
        Ok(located(Document::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Located, E> {
        Ok(located(Document::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Located, E> {
        Ok(located(i64::try_from(value).map_or(Document::Unsigned(value), Document::Integer)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Located, E> {
        Ok(located(Document::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Located, E> {
        Ok(located(Document::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Located, E> {
        Ok(located(Document::Text(value)))
    }

    fn visit_unit<E>(self) -> Result<Located, E> {
        Ok(located(Document::Null))
    }

    fn visit_none<E>(self) -> Result<Located, E> {
        Ok(located(Document::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Located, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Located, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(located(Document::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Located, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = entries.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.below(&name) {
                Some(keep) => {
                    let value = entries.next_value_seed(keep)?;
                    fields.push((name.into_owned(), value));
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        if fields.len() > MOST_FIELDS {
            return Err(de::Error::custom("an object has too many fields"));
        }
        Ok(located(Document::Fields(fields)))
    }
}

/// Fields of one map: the server has limits of its own; this is where a broken one stops.
const MOST_FIELDS: usize = 100_000;

impl Keep {
    /// What is kept of the field `name`; `None` if it is dropped.
    fn below(self, name: &str) -> Option<Keep> {
        match self {
            Self::All => Some(Self::All),
            Self::Only(fields) => fields.iter().find(|(field, _)| *field == name).map(|(_, keep)| *keep),
            Self::Except(fields) => match fields.iter().find(|(field, _)| *field == name) {
                Some((_, keep)) => *keep,
                None => Some(Self::All),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observe;

    fn whole(value: &serde_json::Value) -> Object {
        Object::read(Located::from(value), None).expect("an object")
    }

    fn pruned<Parts: for<'de> Deserialize<'de> + Into<Received>>(value: &serde_json::Value, kind: &Kind) -> Object {
        let parts: Parts = serde_json::from_str(&value.to_string()).expect("decoded");
        let received: Received = parts.into();
        received.object(kind).expect("named")
    }

    #[test]
    fn what_is_dropped_nobody_reads() {
        let meta = |name: &str| {
            json!({
                "name": name, "namespace": "shop", "resourceVersion": "7", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"},
                "annotations": {"millrace.dev/ip": "10.1.0.7"}, "managedFields": [{"manager": "x"}],
                "ownerReferences": [{"kind": "StatefulSet", "name": "db", "controller": true, "apiVersion": "apps/v1", "uid": "v"}],
            })
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta("db-0"),
            "spec": {
                "nodeName": "a", "hostNetwork": false, "volumes": [{"name": "x"}], "tolerations": [{"key": "k"}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "E", "value": "v"}], "ports": [{"name": "web", "containerPort": 80, "hostPort": 8080}]}],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]}],
            },
            "status": {
                "phase": "Running", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}], "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}], "containerStatuses": [{"name": "c"}],
            },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}, "annotations": {"t": "1"}},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["10.1.0.7"], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "a",
                "zone": "east", "hints": {"forZones": [{"name": "east"}], "forNodes": [{"name": "a"}]},
                "targetRef": {"kind": "Pod", "name": "db-0", "uid": "u", "namespace": "shop"},
            }],
        });
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "east"}, "annotations": {"millrace.dev/vtep-mac": "02:00:00:00:00:01"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "providerID": "p"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": ["i"], "sizeBytes": 1}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}], "nodeInfo": {"kernelVersion": "6"},
            },
        });
        let same = |whole: Object, pruned: Object| {
            assert_eq!(observe::read(&whole).expect("valid"), observe::read(&pruned).expect("valid"));
            assert!(pruned.to_json().to_string().len() < whole.to_json().to_string().len(), "something is dropped");
        };
        same(whole(&pod), pruned::<PodParts>(&pod, &observe::POD));
        same(whole(&slice), pruned::<SliceParts>(&slice, &observe::ENDPOINT_SLICE));
        same(whole(&node), pruned::<NodeParts>(&node, &observe::NODE));
    }

    #[test]
    fn items_of_lists_get_their_kind_and_lose_their_version() {
        let text = r#"{"metadata":{"resourceVersion":"9","continue":""},"items":[{"metadata":{"name":"a","resourceVersion":"7"}}]}"#;
        let list: List = serde_json::from_str(text).expect("a list");
        assert_eq!((list.version(), list.continues()), (Some("9"), None));
        let item = list.items.into_iter().next().expect("one");
        assert_eq!(item.version(), Some("7"));
        let object = item.object(&observe::NODE).expect("named");
        assert_eq!(&*object.resource_version, "7");
        assert_eq!(object.to_json(), json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}));
        let null: List = serde_json::from_str(r#"{"metadata":{},"items":null}"#).expect("a list");
        assert!(null.items.is_empty() && null.version().is_none());
    }
}
