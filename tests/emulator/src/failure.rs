//! What a client is told when it may not have what it asked for: a `Status` object and its code.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A refusal. `reason` is the word programs go by (`metav1.StatusReason`).
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
    list_meta: Value,
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, list_meta: json!({}) }
    }

    /// About one object.
    fn of(mut self, resource: &Resource, name: &str) -> Self {
        self.details = json!({"name": name, "kind": resource.plural});
        if !resource.group.is_empty() {
            self.details["group"] = json!(resource.group);
        }
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(404, "NotFound", message).of(resource, name)
    }

    /// A path that leads nowhere: a kind that is not installed.
    pub(crate) fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).of(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::new(409, "Conflict", message).of(resource, name)
    }

    pub(crate) fn stale(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// An object that is refused because of a field.
    pub(crate) fn invalid(resource: &Resource, name: &str, field: &str, why: &str) -> Self {
        let message = format!("{}.{} {name:?} is invalid: {field}: {why}", resource.kind, resource.group);
        let mut failure = Self::new(422, "Invalid", message).of(resource, name);
        failure.details["kind"] = json!(resource.kind);
        failure.details["causes"] = json!([{"reason": "FieldValueInvalid", "message": why, "field": field}]);
        failure
    }

    /// Parameters of a list or watch that contradict each other.
    pub(crate) fn invalid_options(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let mut failure = Self::new(422, "Invalid", message);
        failure.details = json!({
            "group": "meta.k8s.io", "kind": "ListOptions",
            "causes": [{"reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field}],
        });
        failure
    }

    /// A version that the server has forgotten.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The same, with a token that continues the list from another version.
    pub(crate) fn with_continue(mut self, token: String) -> Self {
        self.list_meta = json!({"continue": token});
        self
    }

    /// A version that the server has not reached.
    pub(crate) fn too_new(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut failure = Self::new(504, "Timeout", message);
        failure.details = json!({
            "retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        });
        failure
    }

    /// Fields that other managers own.
    pub(crate) fn apply_conflict(owned: &[(String, String)]) -> Self {
        let cause = |(manager, field): &(String, String)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager:?}"), "field": field});
        let listed: Vec<String> =
            owned.iter().map(|(manager, field)| format!("conflict with {manager:?}: {field}")).collect();
        let plural = if owned.len() == 1 { "conflict" } else { "conflicts" };
        let message = format!("Apply failed with {} {plural}: {}", owned.len(), listed.join("\n"));
        let mut failure = Self::new(409, "Conflict", message);
        failure.details = json!({"causes": owned.iter().map(cause).collect::<Vec<_>>()});
        failure
    }

    pub(crate) fn forbidden(resource: &Resource, verb: &str, name: &str) -> Self {
        let scope = if resource.namespaced { "" } else { " at the cluster scope" };
        let message = format!(
            "{} is forbidden: User \"tester\" cannot {verb} resource {:?} in API group {:?}{scope}",
            resource.qualified(),
            resource.plural,
            resource.group
        );
        Self::new(403, "Forbidden", message).of(resource, name)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn unsupported_media(given: &str) -> Self {
        Self::new(415, "UnsupportedMediaType", format!("the body of the request was in an unknown format - {given}"))
    }

    /// What a test ordered, e.g. 429 or 500.
    pub(crate) fn ordered(code: u16) -> Self {
        let reason = match code {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self::new(code, reason, "as the test ordered")
    }

    /// The `Status` object.
    pub(crate) fn body(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": self.list_meta, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
