//! Who may do what: the rules of a `ClusterRole`, so that a test can hold a client to the rights it is deployed with.

use serde_json::Value;

use crate::resource::Resource;

/// One rule: each verb on each resource of each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// API groups; the core group is empty.
    pub groups: Vec<String>,
    /// Plural names, with a subresource behind a slash.
    pub resources: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
}

impl Rule {
    /// The rules of a `ClusterRole` object.
    #[must_use]
    pub fn of_role(role: &Value) -> Vec<Rule> {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let rule = |rule: &Value| Rule {
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            verbs: texts(&rule["verbs"]),
        };
        role["rules"].as_array().into_iter().flatten().map(rule).collect()
    }

    /// Whether it allows the verb.
    pub(crate) fn allows(&self, resource: &Resource, status: bool, verb: &str) -> bool {
        let name = if status { format!("{}/status", resource.plural) } else { resource.plural.clone() };
        let has = |list: &[String], word: &str| list.iter().any(|entry| entry == word || entry == "*");
        has(&self.groups, &resource.group) && has(&self.resources, &name) && has(&self.verbs, verb)
    }
}
