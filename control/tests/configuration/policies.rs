//! Policies that the API server would have refused, and those of a newer API: what is told, and that they are closed.

use std::sync::Arc;

use millrace_control::cluster::{PolicyRecord, RuleRecord};
use millrace_control::observe::Observed;
use millrace_engine::tables::policy::{Action, Direction};

use crate::support::{TestDirectory, follow, observe};

fn network_policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n"
    )
}

fn cluster_policy(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c}}\nspec: {{tier: Admin, \
         priority: 1, {spec}}}\n"
    )
}

fn record(observed: &Observed) -> Option<Arc<PolicyRecord>> {
    observed.cluster().policies.values().next().cloned()
}

fn problems(observed: &Observed) -> Vec<String> {
    observed.problems().iter().map(ToString::to_string).collect()
}

/// A peer or port of the first ingress rule, and what is told of it.
const REFUSED_RULES: &[(&str, &str)] = &[
    (
        "from: [{ipBlock: {cidr: 10.0.0/8}}]",
        "from[0].ipBlock.cidr: \"10.0.0/8\" is not a prefix such as 10.0.0.0/8 or fd00::/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/33}}]",
        "from[0].ipBlock.cidr: \"10.0.0.0/33\" is not a prefix such as 10.0.0.0/8 or fd00::/8",
    ),
    ("from: [{ipBlock: {cidr: \"\"}}]", "from[0].ipBlock.cidr: \"\" is not a prefix such as 10.0.0.0/8 or fd00::/8"),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [ten]}}]",
        "from[0].ipBlock.except[0]: \"ten\" is not a prefix such as 10.0.0.0/8 or fd00::/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 192.168.0.0/16]}}]",
        "from[0].ipBlock.except[1]: 192.168.0.0/16 is not a smaller part of 10.0.0.0/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]",
        "from[0].ipBlock.except[0]: 10.0.0.0/8 is not a smaller part of 10.0.0.0/8",
    ),
    (
        "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [\"fd00::/8\"]}}]",
        "from[0].ipBlock.except[0]: fd00::/8 is not a smaller part of 10.0.0.0/8",
    ),
    (
        "from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]",
        "from[1]: has ipBlock beside a selector; one peer is either",
    ),
    ("from: [{}]", "from[0]: names nobody: give ipBlock, podSelector or namespaceSelector"),
    ("from: [{podSelector: null}]", "from[0]: names nobody: give ipBlock, podSelector or namespaceSelector"),
    ("from: [{serviceAccounts: {}}]", "from[0]: names nobody: give ipBlock, podSelector or namespaceSelector"),
    (
        "from: [{podSelector: {matchExpressions: [{key: a, operator: Near, values: [b]}]}}]",
        "from[0].podSelector.matchExpressions[0].operator: \"Near\" is none of In, NotIn, Exists and DoesNotExist",
    ),
    (
        "from: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]",
        "from[0].namespaceSelector.matchExpressions[0].values: must not be empty for In and NotIn",
    ),
    (
        "from: [{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]",
        "from[0].namespaceSelector.matchExpressions[0].values: must be empty for Exists and DoesNotExist",
    ),
    (
        "from: [{podSelector: {matchLabels: {-a: b}}}]",
        "from[0].podSelector.matchLabels: \"-a\" is not the key of a label",
    ),
    ("ports: [{port: 90, endPort: 80}]", "ports[0].endPort: 80 is below port 90"),
    ("ports: [{port: http, endPort: 80}]", "ports[0].endPort: cannot go with a port that is named"),
    ("ports: [{endPort: 80}]", "ports[0].endPort: needs port, where the range begins"),
    ("ports: [{port: 80}, {port: 0}]", "ports[1].port: 0 is not a port from 1 to 65535"),
    ("ports: [{port: 80, endPort: 65536}]", "ports[0].endPort: 65536 is not a port from 1 to 65535"),
    (
        "ports: [{port: Web}]",
        "ports[0].port: \"Web\" is not the name of a port (at most 15 of a-z, 0-9 and '-', with a letter)",
    ),
    ("ports: [{port: 80, protocol: tcp}]", "ports[0].protocol: \"tcp\" is none of TCP, UDP and SCTP"),
];

#[test]
fn a_network_policy_with_a_refused_rule_is_told_and_isolates_what_it_selects() {
    for (rule, told) in REFUSED_RULES {
        let spec = format!("{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{rule}}}, {{}}]}}");
        let observed = observe(&network_policy(&spec));
        assert_eq!(problems(&observed), [format!("objects.yaml:4: NetworkPolicy n/p: spec.ingress[0].{told}")]);
        let record = record(&observed).expect("a closed one");
        assert_eq!(record.subject.to_string(), "pods app=web in namespace n", "{rule}");
        assert_eq!((record.ingress.as_deref(), record.egress.as_deref()), (Some([].as_slice()), None), "{rule}");
    }
}

#[test]
fn what_of_a_refused_network_policy_cannot_be_told_is_everything() {
    let nowhere = "podSelector: {matchExpressions: [{key: a, operator: Near}]}";
    for (spec, subject, directions) in [
        (format!("{{{nowhere}}}"), "pods all in namespace n", [true, false]),
        ("{podSelector: [], policyTypes: [Egress]}".to_owned(), "pods all in namespace n", [false, true]),
        ("{podSelector: {}, policyTypes: [Inward]}".to_owned(), "pods all in namespace n", [true, true]),
        ("{podSelector: {}, policyTypes: Egress}".to_owned(), "pods all in namespace n", [true, true]),
        ("{podSelector: {}, egress: [{to: [{}]}]}".to_owned(), "pods all in namespace n", [true, true]),
        ("{podSelector: {}, policyTypes: null, ingress: 5}".to_owned(), "pods all in namespace n", [true, false]),
    ] {
        let observed = observe(&network_policy(&spec));
        assert_eq!(problems(&observed).len(), 1, "{spec}");
        let record = record(&observed).expect("a closed one");
        let concerned = [Direction::Ingress, Direction::Egress].map(|direction| record.rules(direction));
        assert_eq!(record.subject.to_string(), subject, "{spec}");
        assert_eq!(concerned.map(|rules| rules.is_some()), directions, "{spec}");
        assert!(concerned.into_iter().flatten().all(<[RuleRecord]>::is_empty), "{spec}");
    }
}

/// A server that refuses a change leaves the object as it was.
#[test]
fn a_refused_change_leaves_the_policy_as_it_was() {
    let directory = TestDirectory::new();
    let wrong = network_policy("{podSelector: {}, ingress: [{from: [{}]}]}");
    let right = network_policy("{podSelector: {}, ingress: [{}]}");
    directory.write("policy.yaml", &wrong);
    let (watch, mut observed) = (directory.watch(), Observed::default());
    let mut rules_after = |text: Option<&str>| {
        match text {
            Some(text) => directory.write("policy.yaml", text),
            None => directory.remove("policy.yaml"),
        }
        follow(&watch, &mut observed);
        let rules = record(&observed).and_then(|record| record.ingress.as_ref().map(Vec::len));
        (rules, observed.problems().len())
    };
    assert_eq!(rules_after(Some(&wrong)), (Some(0), 1));
    assert_eq!(rules_after(Some(&right)), (Some(1), 0));
    assert_eq!(rules_after(Some(&wrong)), (Some(1), 1));
    assert_eq!(rules_after(None), (None, 0));
}

/// An empty selector selects everything, an absent one is not used; `null` is absent.
#[test]
fn null_is_absent_and_empty_is_everything() {
    let peer = |peer: &str| {
        let observed = observe(&network_policy(&format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")));
        assert_eq!(problems(&observed), [""; 0], "{peer}");
        let record = record(&observed).expect("a policy");
        format!("{:?}", record.ingress.as_ref().expect("rules")[0].peers)
    };
    assert_eq!(peer("{podSelector: {}, namespaceSelector: null}"), peer("{podSelector: {}}"));
    assert_eq!(peer("{podSelector: null, namespaceSelector: {}}"), peer("{namespaceSelector: {}}"));
    assert_eq!(peer("{namespaceSelector: {}, ipBlock: null}"), peer("{namespaceSelector: {}}"));
    assert_eq!(peer("{namespaceSelector: {matchLabels: null}}"), peer("{namespaceSelector: {}}"));
    assert_ne!(peer("{podSelector: {}}"), peer("{namespaceSelector: {}}"));
}

fn only_rule(record: &PolicyRecord, direction: Direction) -> &RuleRecord {
    let rules = record.rules(direction).expect("the direction is concerned");
    assert_eq!(rules.len(), 1);
    &rules[0]
}

/// "For Accept rules, fail closed means: treat the rule as matching no traffic. For Deny and Pass rules: as a Deny all rule."
#[test]
fn a_rule_of_a_newer_api_fails_closed() {
    let peers = "namespaces: {}";
    for (field, told) in [
        (format!("from: [{{{peers}}}, {{serviceAccounts: {{}}}}]"), ".from[1]: `serviceAccounts` not known here"),
        ("from: [{}]".to_owned(), ".from[0]: names nobody"),
        ("from: [{pods: {podSelector: {}, owners: []}}]".to_owned(), ".from[0]: `owners` not known here"),
        (format!("from: [{{{peers}}}], except: []"), ": `except` not known here"),
        (format!("from: [{{{peers}}}], protocols: [{{icmp: {{}}}}]"), ".protocols[0]: `icmp` not known here"),
        (format!("from: [{{{peers}}}], protocols: [{{}}]"), ".protocols[0]: names no protocol"),
        (
            format!("from: [{{{peers}}}], protocols: [{{tcp: {{sourcePort: 1}}}}]"),
            ".protocols[0]: `sourcePort` not known here",
        ),
        (
            format!("from: [{{{peers}}}], protocols: [{{tcp: {{destinationPort: {{number: 1, service: x}}}}}}]"),
            ".protocols[0]: `service` not known here",
        ),
    ] {
        for action in [Action::Accept, Action::Deny, Action::Pass] {
            let name = action.name();
            let text =
                cluster_policy(&format!("subject: {{namespaces: {{}}}}, ingress: [{{action: {name}, {field}}}]"));
            let observed = observe(&text);
            assert_eq!(problems(&observed), [""; 0], "{text}");
            let record = record(&observed).expect("a policy");
            let rule = only_rule(&record, Direction::Ingress);
            let (outcome, peers) = match action {
                Action::Accept => ("the rule accepts nothing", Some(Vec::new())),
                Action::Deny | Action::Pass => ("the rule denies everything", None),
            };
            assert_eq!(rule.peers, peers, "{text}");
            assert_eq!(rule.action == Action::Accept, action == Action::Accept, "{text}");
            let notes: Vec<String> = record.notes.iter().map(|(field, note)| format!("{field}: {note}")).collect();
            assert_eq!(notes, [format!("spec.ingress[0]{told}: {outcome}")]);
        }
    }
}

#[test]
fn an_unknown_action_denies_and_an_unknown_field_beside_the_rules_closes_all() {
    let of = |text: &str| {
        let observed = observe(&cluster_policy(text));
        assert_eq!(problems(&observed), [""; 0], "{text}");
        record(&observed).expect("a policy")
    };
    let record = of("subject: {namespaces: {}}, egress: [{action: Log, to: [{namespaces: {}}]}]");
    assert_eq!(only_rule(&record, Direction::Egress).action, Action::Deny);
    assert_eq!(record.notes["spec.egress[0].action"], "is not known here: the rule denies everything");
    let record = of("schedule: night, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}]}]");
    assert_eq!(only_rule(&record, Direction::Egress).peers, Some(Vec::new()));
    assert_eq!(record.notes["spec"], "`schedule` not known here: the rule accepts nothing");
}

/// Whom a refused policy is about and when it is asked must be known; its rules then deny what they may have denied.
#[test]
fn a_refused_cluster_policy_denies_what_it_selects() {
    let rule = |action: &str| format!("ingress: [{{action: {action}, from: [{{nodes: {{}}}}]}}]");
    let of = |spec: &str| {
        let observed = observe(&cluster_policy(spec));
        assert_eq!(problems(&observed).len(), 1, "{spec}");
        record(&observed)
    };
    let subject = "subject: {namespaces: {matchLabels: {a: b}}}";
    let denied = of(&format!("{subject}, {}", rule("Deny"))).expect("a closed one");
    let closed = RuleRecord { name: None, action: Action::Deny, peers: None, ports: None };
    assert_eq!((only_rule(&denied, Direction::Ingress), denied.egress.is_none()), (&closed, true));
    assert!(of(&format!("{subject}, {}", rule("Accept"))).expect("a closed one").ingress.is_none());
    assert_eq!(of(&format!("subject: {{serviceAccounts: {{}}}}, {}", rule("Deny"))), None);
    assert_eq!(of(&format!("subject: {{}}, {}", rule("Deny"))), None);
}
