//! Events on the server: objects of `events.k8s.io/v1`, written and forgotten.
//!
//! They are no objects of the store: nothing reads them, no table is made of them. An Event names the object by its uid
//! too, which `kubectl describe` asks for and the store does not keep; it is looked up when an Event is written, by a list
//! of one name, so that no right beyond those of the watch is needed. An object that is not found is named without.

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};

use super::resource::Resource;
use super::{ApiServerStore, Refused, malformed, unknown};
use crate::events::EventSink;
use crate::store::{Kind, ObjectKey, StoreError};

/// The kind.
const EVENT: Kind = Kind::new("events.k8s.io/v1", "Event");

/// Where Events of objects without a namespace are.
const NAMESPACE: &str = "default";

impl ApiServerStore {
    fn uid(&self, regarding: &ObjectKey) -> Option<String> {
        let resource = Resource::of(&regarding.kind)?;
        let parameters = ListParams { limit: Some(1), ..ListParams::default() };
        let parameters = parameters.fields(&format!("metadata.name={}", regarding.name));
        let request = Request::new(resource.path(regarding.namespace.as_deref())).list(&parameters).ok()?;
        let found = self.request(|client| async move { client.request::<Value>(request).await }).ok()?;
        found.pointer("/items/0/metadata/uid")?.as_str().map(str::to_owned)
    }

    /// The server's answer in the words of the trait.
    fn told(&self, regarding: &ObjectKey, name: &str, answer: Result<String, Refused>) -> Result<(), StoreError> {
        let key = ObjectKey { kind: EVENT, namespace: Some(namespace(regarding)), name: name.to_owned() };
        let refused = |code, message| Err(StoreError::Refused { what: key.to_string(), code, message });
        match answer {
            Ok(_) => Ok(()),
            Err(Refused::Missing) => Err(StoreError::NotFound { key: Box::new(key) }),
            Err(Refused::Exists) => Err(StoreError::AlreadyExists { key: Box::new(key) }),
            Err(Refused::Conflict) => refused(409, "it was changed meanwhile".to_owned()),
            Err(Refused::Other { code, message }) => refused(code, message),
            Err(Refused::Away(message)) => Err(self.away(message)),
        }
    }
}

fn namespace(regarding: &ObjectKey) -> String {
    regarding.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())
}

fn collection(regarding: &ObjectKey) -> Result<Request, StoreError> {
    let resource = Resource::of(&EVENT).ok_or_else(|| unknown(&EVENT))?;
    Ok(Request::new(resource.path(Some(&namespace(regarding)))))
}

impl EventSink for ApiServerStore {
    fn create(&self, regarding: &ObjectKey, name: &str, mut event: Value) -> Result<(), StoreError> {
        event["metadata"] = json!({"name": name, "namespace": namespace(regarding)});
        let kind = &regarding.kind;
        event["regarding"] = json!({"apiVersion": kind.api_version, "kind": kind.kind, "name": regarding.name});
        if let Some(namespace) = &regarding.namespace {
            event["regarding"]["namespace"] = json!(namespace);
        }
        if let Some(uid) = self.uid(regarding) {
            event["regarding"]["uid"] = uid.into();
        }
        let request = collection(regarding)?.create(&PostParams::default(), event.to_string().into_bytes());
        let request = request.map_err(|error| malformed(error.to_string()))?;
        self.told(regarding, name, self.request(|client| async move { client.request_text(request).await }))
    }

    fn repeat(&self, regarding: &ObjectKey, name: &str, series: Value) -> Result<(), StoreError> {
        let request = collection(regarding)?.patch(name, &PatchParams::default(), &Patch::Merge(&series));
        let request = request.map_err(|error| malformed(error.to_string()))?;
        self.told(regarding, name, self.request(|client| async move { client.request_text(request).await }))
    }
}
