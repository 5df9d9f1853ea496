//! `show policies`, `policy diff`, `policy reach`.

use std::fmt::Write as _;

use comfy_table::Cell;

use super::{left, number, problem_line, render, right};
use crate::api::model::{
    FlowChangeReport, FlowEndReport, FlowVerdictReport, PoliciesReport, PolicyDiffReport, PolicyReachReport,
    PolicyRuleReport,
};

/// `show policies`.
pub(in crate::cli) fn policies(report: &PoliciesReport) -> String {
    let mut text = String::new();
    if let Some(pod) = &report.pod {
        for (name, value) in [("Pod", &pod.pod), ("Ingress", &pod.ingress), ("Egress", &pod.egress)] {
            let _ = writeln!(text, "{name:<9}{value}");
        }
    }
    let heads = ["Policy", "Direction", "Pods", "Denied", "Rule", "Action", "Peers", "Ports", "Used"];
    let rows = report.policies.iter().flat_map(|policy| {
        let head = [
            left(format!("{}\n{}", policy.policy, policy.tier)),
            left(&policy.direction),
            right(policy.pods.to_string()),
            right(number(policy.denied_packets)),
        ];
        let mut rules: Vec<Vec<Cell>> = policy.rules.iter().map(|rule| rule_cells(rule).into()).collect();
        if rules.is_empty() {
            rules.push(vec![left("none"), left(""), left(""), left(""), left("")]);
        }
        let blank = || [left(""), left(""), left(""), left("")];
        let heads = std::iter::once(head).chain(std::iter::repeat_with(blank));
        heads.zip(rules).map(|(head, rule)| head.into_iter().chain(rule).collect::<Vec<Cell>>()).collect::<Vec<_>>()
    });
    text + &render(&heads, rows, "No policy selects a pod of this node.")
}

/// Number and name, action, peers, ports, and how often it decided.
fn rule_cells(rule: &PolicyRuleReport) -> [Cell; 5] {
    let name = if rule.name.is_empty() { String::new() } else { format!(" {}", rule.name) };
    [
        left(format!("{}{name}", rule.number)),
        left(&rule.action),
        left(rule.peers.join("\n")),
        left(rule.ports.join("\n")),
        right(number(rule.used)),
    ]
}

/// `policy diff`.
pub(in crate::cli) fn policy_diff(report: &PolicyDiffReport) -> String {
    let heads = ["Flow", "State", "Now", "Then", "Because"];
    let rows = report.flows.iter().map(|flow| {
        vec![
            left(ends(flow)),
            left(&flow.state),
            left(word(&flow.before)),
            left(word(&flow.after)),
            left(format!("now: {}\nthen: {}", flow.before.reasons.join("\n  "), flow.after.reasons.join("\n  "))),
        ]
    });
    let mut text = render(&heads, rows, "No verdict would change.");
    let listed = report.flows.len() as u64;
    let _ = write!(text, "{} of {} flows would get another verdict", number(report.changing), number(report.judged));
    let _ =
        if listed < report.changing { writeln!(text, "; {} are listed.", number(listed)) } else { writeln!(text, ".") };
    for problem in &report.problems {
        let _ = writeln!(text, "problem: {}", problem_line(problem));
    }
    text
}

fn ends(flow: &FlowChangeReport) -> String {
    let end = |end: &FlowEndReport| {
        let name = if end.name.is_empty() { String::new() } else { format!("{} ", end.name) };
        format!("{name}{}", super::endpoint(&end.address, end.port))
    };
    format!("{} {}\n  > {}", flow.protocol, end(&flow.source), end(&flow.destination))
}

fn word(verdict: &FlowVerdictReport) -> &'static str {
    if verdict.allowed { "allowed" } else { "denied" }
}

/// `policy reach`.
pub(in crate::cli) fn policy_reach(report: &PolicyReachReport) -> String {
    let rows = report.reach.iter().map(|reach| {
        let family = if reach.family == "both" { String::new() } else { format!(" ({})", reach.family) };
        vec![left(&reach.source), left(format!("{}{family}", reach.target)), left(reach.ports.join(", "))]
    });
    let mut text = render(&["From", "To", "Ports"], rows, "Nobody may reach anybody.");
    let _ = writeln!(text, "{} of {} pairs have something open.", number(report.open_pairs), number(report.pairs));
    let Some(unused) = &report.unused_rules else { return text };
    let rows = unused.iter().map(|unused| {
        let [rule, action, peers, ports, _] = rule_cells(&unused.rule);
        let pods = right(unused.pods.to_string());
        vec![left(&unused.policy), left(&unused.direction), pods, rule, action, peers, ports]
    });
    let heads = ["Unused rule of", "Direction", "Pods", "Rule", "Action", "Peers", "Ports"];
    text + "\n" + &render(&heads, rows, "Every rule that lets something through was used.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::{PodPolicyReport, PolicyReport, ReachReport, UnusedRuleReport};

    /// Lines with one blank between words.
    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn rule(number: u16, used: u64) -> PolicyRuleReport {
        PolicyRuleReport {
            number,
            name: "from clients".into(),
            action: "Accept".into(),
            peers: vec!["pods app=client in namespace default".into(), "network 10.0.0.0/8".into()],
            ports: vec!["tcp/80".into()],
            used,
        }
    }

    #[test]
    fn rules_of_a_pod_are_readable() {
        let report = PoliciesReport {
            pod: Some(PodPolicyReport {
                pod: "default/web".into(),
                ingress: "isolated: what no rule allows is denied".into(),
                egress: "open: no policy selects the pod".into(),
            }),
            policies: vec![PolicyReport {
                policy: "default/web".into(),
                direction: "ingress".into(),
                tier: "NetworkPolicy".into(),
                pods: 1,
                denied_packets: 1_234,
                rules: vec![rule(1, 7)],
            }],
        };
        let expected = [
            "Pod default/web",
            "Ingress isolated: what no rule allows is denied",
            "Egress open: no policy selects the pod",
            "Policy Direction Pods Denied Rule Action Peers Ports Used",
            "default/web ingress 1 1,234 1 from clients Accept pods app=client in namespace default tcp/80 7",
            "NetworkPolicy network 10.0.0.0/8",
        ];
        assert_eq!(lines(&policies(&report)), expected);
    }

    #[test]
    fn changes_say_which_rule_makes_them() {
        let end = |name: &str, address: &str, port| FlowEndReport { name: name.into(), address: address.into(), port };
        let verdict = |allowed, reason: &str| FlowVerdictReport { allowed, reasons: vec![reason.into()] };
        let flow = FlowChangeReport {
            protocol: "tcp".into(),
            state: "ESTABLISHED".into(),
            source: end("", "203.0.113.9", 40_000),
            destination: end("default/web", "10.1.0.6", 80),
            before: verdict(true, "ingress allowed by default/web rule 1"),
            after: verdict(false, "ingress drop policy_ingress: isolated by default/web"),
        };
        let report = PolicyDiffReport { judged: 1_000, changing: 2, flows: vec![flow], ..Default::default() };
        let expected = [
            "Flow State Now Then Because",
            "tcp 203.0.113.9:40000 ESTABLISHED allowed denied now: ingress allowed by default/web rule 1",
            "> default/web 10.1.0.6:80 then: ingress drop policy_ingress: isolated by default/web",
            "2 of 1,000 flows would get another verdict; 1 are listed.",
        ];
        assert_eq!(lines(&policy_diff(&report)), expected);
        let nothing = PolicyDiffReport { judged: 3, ..Default::default() };
        let expected = ["No verdict would change.", "0 of 3 flows would get another verdict."];
        assert_eq!(lines(&policy_diff(&nothing)), expected);
    }

    #[test]
    fn who_reaches_whom_and_what_is_unused() {
        let reach = |family: &str, ports: &[&str]| ReachReport {
            source: "default/client".into(),
            target: "default/web".into(),
            family: family.into(),
            ports: ports.iter().map(ToString::to_string).collect(),
        };
        let unused =
            UnusedRuleReport { policy: "default/web".into(), direction: "ingress".into(), rule: rule(2, 0), pods: 3 };
        let report = PolicyReachReport {
            pairs: 6,
            open_pairs: 1,
            reach: vec![reach("ipv4", &["tcp/80", "icmp"]), reach("ipv6", &["all"])],
            unused_rules: Some(vec![unused]),
        };
        let expected = [
            "From To Ports",
            "default/client default/web (ipv4) tcp/80, icmp",
            "default/client default/web (ipv6) all",
            "1 of 6 pairs have something open.",
            "",
            "Unused rule of Direction Pods Rule Action Peers Ports",
            "default/web ingress 3 2 from clients Accept pods app=client in namespace default tcp/80",
            "network 10.0.0.0/8",
        ];
        assert_eq!(lines(&policy_reach(&report)), expected);
    }
}
