//! The `CustomResourceDefinition` objects of our kinds, made from the very types that read them.
//!
//! `deploy/crds.yaml` is their text; a test compares. A field that the types do not know is refused here and, by the
//! schema, dropped or refused by a server, so both must come from one place.

use serde_json::{Value, json};

use super::{bridging, network, ours};
use crate::store::{Kind, OUR_GROUP};

/// One kind: kind, plural, short name, schema of its `spec`, a column for lists.
type Definition = (Kind, &'static str, &'static str, fn() -> Value, &'static [(&'static str, &'static str)]);

fn definitions() -> [Definition; 6] {
    [
        (
            super::UPLINK,
            "uplinks",
            "uplink",
            ours::uplink_schema,
            &[("Node", ".spec.node"), ("Interface", ".spec.interface")],
        ),
        (super::IP_POOL, "ippools", "ippool", ours::pool_schema, &[("CIDR", ".spec.cidr"), ("Tunnel", ".spec.tunnel")]),
        (
            super::IP_BLOCK,
            "ipblocks",
            "ipblock",
            ours::block_schema,
            &[("CIDR", ".spec.cidr"), ("Node", ".spec.node"), ("Pool", ".spec.pool")],
        ),
        (super::BRIDGE, "bridges", "bridge", bridging::bridge_schema, &[("Node", ".spec.node")]),
        (super::PORT, "ports", "port", bridging::port_schema, &[("Node", ".spec.node"), ("Bridge", ".spec.bridge")]),
        (
            super::NETWORK,
            "networks",
            "network",
            network::network_schema,
            &[("Interface", ".spec.interface"), ("VLAN", ".spec.vlan")],
        ),
    ]
}

/// All definitions, in the order of `deploy/crds.yaml`.
#[must_use]
pub fn custom_resource_definitions() -> Vec<Value> {
    definitions().into_iter().map(definition).collect()
}

fn definition((kind, plural, singular, spec, columns): Definition) -> Value {
    let version = kind.api_version.split_once('/').map_or("", |(_, version)| version);
    let column = |(name, path): &(&str, &str)| {
        let is_number = *name == "VLAN";
        json!({"name": name, "type": if is_number { "integer" } else { "string" }, "jsonPath": path})
    };
    let columns: Vec<Value> = columns.iter().map(column).collect();
    let status = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{OUR_GROUP}")},
        "spec": {
            "group": OUR_GROUP,
            "scope": "Cluster",
            "names": {
                "plural": plural, "singular": singular, "kind": kind.kind, "listKind": format!("{}List", kind.kind),
                "categories": ["millrace"],
            },
            "versions": [{
                "name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"], "properties": {"spec": spec(), "status": status},
                }},
            }],
        },
    })
}

/// The text of `deploy/crds.yaml`.
#[must_use]
pub fn definitions_text() -> String {
    let mut text = "# The kinds of millrace.dev. Generated from the types that read them:\n\
                    # MILLRACE_WRITE_DOCS=1 cargo test -p millrace-control --lib definitions\n"
        .to_owned();
    for definition in custom_resource_definitions() {
        text.push_str("---\n");
        // A value of texts, numbers and lists has a form in YAML.
        text.push_str(&serde_saphyr::to_string(&definition).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::KINDS;

    #[test]
    fn every_kind_of_ours_is_defined() {
        let ours = KINDS.iter().filter(|kind| kind.group() == OUR_GROUP).count();
        let definitions = custom_resource_definitions();
        assert_eq!(definitions.len(), ours);
        for definition in definitions {
            // A type that the tracer cannot follow has no schema, and a server would take anything for it.
            let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/type");
            assert_eq!(schema, Some(&json!("object")), "{}", definition["metadata"]["name"]);
        }
    }

    #[test]
    fn the_file_says_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds.yaml");
        if std::env::var_os("MILLRACE_WRITE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(path, definitions_text()).expect("written");
        }
        let text = std::fs::read_to_string(path).expect("deploy/crds.yaml");
        let read: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        for (read, made) in read.iter().zip(custom_resource_definitions()) {
            assert_eq!(*read, made, "deploy/crds.yaml is not what the types say; its head says how to write it anew");
        }
        assert_eq!(read.len(), custom_resource_definitions().len());
    }
}
