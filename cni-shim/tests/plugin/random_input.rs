//! Whatever a caller sends: no panic, and one JSON document that is a result or an error, or nothing after DEL.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use millrace_cni::environment::Environment;
use millrace_cni::spec::NetworkResult;
use proptest::prelude::*;
use serde_json::Value;

const NAMES: [&str; 6] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// Values near the right ones, and any bytes.
fn variable() -> impl Strategy<Value = OsString> {
    prop_oneof![
        4 => prop::sample::select(vec!["ADD", "DEL", "VERSION", "CHECK", "c1", "eth0", "/run/netns/c1", "A=B;C=D", ""])
            .prop_map(OsString::from),
        1 => prop::collection::vec(1_u8.., 0..24).prop_map(OsString::from_vec),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        // Nobody listens there, so that right input ends with code 11.
        Just(Value::from("/nonexistent/agent.sock")),
        prop::sample::select(vec!["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.2.0"]).prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "cniVersion",
        "name",
        "type",
        "socket",
        "timeoutSeconds",
        "ipam",
        "runtimeConfig",
        "prevResult",
        "interfaces",
        "ips",
        "routes",
        "dns",
        "address",
        "dst",
        "interface",
        "portMappings",
        "hostPort",
        "containerPort",
        "bandwidth",
        "ingressRate",
        "x",
    ]);
    leaf.prop_recursive(4, 48, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()),
        ]
    })
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => json().prop_map(|value| value.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
        1 => (json(), any::<prop::sample::Index>()).prop_map(|(value, cut)| {
            let mut text = value.to_string().into_bytes();
            text.truncate(cut.index(text.len() + 1));
            text
        }),
    ]
}

fn is_error(document: &Value) -> bool {
    document["code"].as_u64().is_some_and(|code| code > 0)
        && document["msg"].as_str().is_some_and(|message| !message.is_empty())
        && document["cniVersion"].is_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_ends_in_one_document(values in prop::collection::vec(prop::option::of(variable()), 6), input in input()) {
        let variables = NAMES.into_iter().zip(values).filter_map(|(name, value)| Some((OsString::from(name), value?)));
        let environment = Environment::new(variables);
        let (mut stdout, mut log) = (Vec::new(), Vec::new());
        let exit_code = millrace_cni::run(&environment, &mut input.as_slice(), &mut stdout, &mut log);
        match (exit_code, stdout.is_empty()) {
            (0, true) => prop_assert!(String::from_utf8_lossy(&log).contains("cleans up"), "DEL without an agent"),
            (0, false) => {
                let document: Value = serde_json::from_slice(&stdout)?;
                prop_assert!(document["supportedVersions"].is_array(), "only VERSION can succeed here");
            }
            (1, false) => prop_assert!(is_error(&serde_json::from_slice(&stdout)?)),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn any_previous_result_survives_or_is_refused(value in json()) {
        if let Ok(previous) = serde_json::from_value::<NetworkResult>(value) {
            let ours = NetworkResult::default();
            let version = millrace_cni::spec::Version::NEWEST;
            let amended = ours.amend(previous.clone()).to_json(version)?;
            let again: NetworkResult = serde_json::from_value(amended)?;
            prop_assert_eq!(again.interfaces, previous.interfaces);
            prop_assert_eq!(again.routes, previous.routes);
        }
    }
}
