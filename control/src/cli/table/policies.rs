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
