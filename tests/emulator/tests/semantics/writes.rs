//! Creating, replacing, patching, applying, deleting.

use serde_json::{Value, json};

use crate::server::{GADGETS, Server, version};

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn gadget(name: &str, size: u32) -> Value {
    json!({"apiVersion": "test.millrace.dev/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": {"size": size}})
}

#[test]
fn a_created_object_has_what_the_server_gives_it() {
    let server = Server::start();
    let made = server.post(&server.maps(), map("a")).done(201);
    let metadata = &made["metadata"];
    assert!(metadata["uid"].is_string() && metadata["creationTimestamp"].is_string(), "{made}");
    assert_eq!(metadata["namespace"], server.namespace());
    assert!(version(&made) > 0);
    assert_eq!(server.get(&format!("{}/a", server.maps())).done(200), made);
    let again = server.post(&server.maps(), map("a"));
    assert_eq!(again.refusal(), (409, "AlreadyExists"));
    assert_eq!(again.body["message"], "configmaps \"a\" already exists");
    let generated = server.post(&server.maps(), json!({"metadata": {"generateName": "g-"}})).done(201);
    let name = generated["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");
}

#[test]
fn what_cannot_be_created_is_refused() {
    let server = Server::start();
    let maps = server.maps();
    let post = |body: Value| server.post(&maps, body);
    assert_eq!(post(json!({"metadata": {"name": "A b"}})).refusal(), (422, "Invalid"));
    assert_eq!(post(json!({"metadata": {}})).refusal(), (422, "Invalid"));
    assert_eq!(
        post(json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}})).refusal(),
        (400, "BadRequest")
    );
    assert_eq!(post(json!({"metadata": {"name": "a", "namespace": "default"}})).refusal(), (400, "BadRequest"));
    assert_eq!(post(json!({"metadata": {"name": "a", "resourceVersion": "5"}})).code, 500);
    let elsewhere = server.post("/api/v1/namespaces/no-such-namespace/configmaps", map("a"));
    assert_eq!(elsewhere.refusal(), (404, "NotFound"));
}

/// api-concepts, "Resource versions"; API conventions, "Concurrency control and consistency".
#[test]
fn an_update_is_compare_and_swap() {
    let server = Server::start();
    let path = format!("{}/a", server.maps());
    let first = server.post(&server.maps(), map("a")).done(201);
    let mut second = first.clone();
    second["data"] = json!({"x": "1"});
    let second = server.put(&path, second).done(200);
    assert!(version(&second) > version(&first));
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    let mut stale = first.clone();
    stale["data"] = json!({"x": "2"});
    let refused = server.put(&path, stale);
    assert_eq!(refused.refusal(), (409, "Conflict"));
    assert!(refused.body["message"].as_str().is_some_and(|text| text.contains("the object has been modified")));
    // Without a version whoever writes last wins, for kinds that allow it.
    let blind = server.put(&path, map("a")).done(200);
    assert!(blind.get("data").is_none(), "replaced as a whole");
    let mut same = blind.clone();
    same["metadata"]["managedFields"] = Value::Null;
    assert_eq!(version(&server.put(&path, same).done(200)), version(&blind), "nothing changed: the version stays");
    assert_eq!(server.put(&path, map("b")).refusal(), (400, "BadRequest"));
    assert_eq!(server.put(&format!("{}/b", server.maps()), map("b")).refusal(), (404, "NotFound"));
    let mut other = map("a");
    other["metadata"]["uid"] = json!("11111111-1111-4111-8111-111111111111");
    assert_eq!(server.put(&path, other).refusal(), (409, "Conflict"));
}

/// API conventions, "Spec and status"; custom resources, "Status subresource".
#[test]
fn status_is_written_by_its_own_path() {
    let server = Server::start();
    server.define_gadgets();
    let name = server.gadget("status");
    let path = format!("{GADGETS}/{name}");
    let mut made = gadget(&name, 1);
    made["status"] = json!({"seen": 1});
    let made = server.post(GADGETS, made).done(201);
    assert!(made.get("status").is_none() && made["metadata"]["generation"] == 1, "{made}");
    let mut both = made.clone();
    both["spec"]["size"] = json!(2);
    both["status"] = json!({"seen": 2});
    let resized = server.put(&path, both.clone()).done(200);
    assert!(resized.get("status").is_none() && resized["metadata"]["generation"] == 2, "{resized}");
    both["metadata"]["resourceVersion"] = resized["metadata"]["resourceVersion"].clone();
    both["spec"]["size"] = json!(3);
    let seen = server.put(&format!("{path}/status"), both.clone()).done(200);
    assert_eq!((&seen["status"]["seen"], &seen["spec"]["size"]), (&json!(2), &json!(2)));
    assert_eq!(seen["metadata"]["generation"], 2, "a status is no new generation");
    assert_eq!(server.put(&format!("{path}/status"), both).refusal(), (409, "Conflict"));
    assert_eq!(server.get(&format!("{path}/status")).done(200), seen);
    let unconditional = server.put(&path, gadget(&name, 4));
    assert_eq!(unconditional.refusal(), (422, "Invalid"), "custom resources need a version");
    assert_eq!(server.get(&format!("{}/x/status", server.maps())).code, 404);
    server.delete(&path, None).done(200);
}

/// api-concepts, "Patch and apply".
#[test]
fn patches_of_each_kind_change_what_they_say() {
    let server = Server::start();
    server.define_gadgets();
    let path = format!("{}/a", server.maps());
    let mut first = map("a");
    first["data"] = json!({"x": "1", "y": "1"});
    server.post(&server.maps(), first).done(201);
    let merged = server.patch(&path, "application/merge-patch+json", json!({"data": {"x": null, "z": "1"}})).done(200);
    assert_eq!(merged["data"], json!({"y": "1", "z": "1"}));
    let list =
        json!([{"op": "test", "path": "/data/y", "value": "1"}, {"op": "replace", "path": "/data/y", "value": "2"}]);
    let patched = server.patch(&path, "application/json-patch+json", list.clone()).done(200);
    assert_eq!(patched["data"]["y"], "2");
    assert_eq!(
        server.patch(&path, "application/json-patch+json", list).refusal(),
        (422, "Invalid"),
        "the test fails now"
    );
    let media = "application/strategic-merge-patch+json";
    assert_eq!(server.patch(&path, media, json!({"data": {"w": "1"}})).done(200)["data"]["w"], "1");
    let stale = json!({"metadata": {"resourceVersion": merged["metadata"]["resourceVersion"]}, "data": {"w": "9"}});
    assert_eq!(server.patch(&path, "application/merge-patch+json", stale).refusal(), (409, "Conflict"));
    assert_eq!(server.patch(&path, "application/unknown", json!({})).code, 415);
    let name = server.gadget("patched");
    server.post(GADGETS, gadget(&name, 1)).done(201);
    assert_eq!(server.patch(&format!("{GADGETS}/{name}"), media, json!({"spec": {"size": 2}})).code, 415);
    assert_eq!(server.patch(&format!("{}/b", server.maps()), media, json!({})).refusal(), (404, "NotFound"));
    server.delete(&format!("{GADGETS}/{name}"), None).done(200);
}

/// `kubernetes.io/docs/reference/using-api/server-side-apply`.
#[test]
fn applying_owns_fields() {
    let server = Server::start();
    let path = format!("{}/a", server.maps());
    let by = |manager: &str| format!("{path}?fieldManager={manager}");
    let data = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let made = server.apply(&by("one"), data(json!({"x": "1", "y": "1"}))).done(201);
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"]["f:data"]["f:x"], json!({}));
    let same = server.apply(&by("one"), data(json!({"x": "1", "y": "1"}))).done(200);
    assert_eq!(version(&same), version(&made), "nothing changed: the version stays");
    let less = server.apply(&by("one"), data(json!({"x": "1"}))).done(200);
    assert_eq!(less["data"], json!({"x": "1"}), "what is no longer applied goes");
    let refused = server.apply(&by("two"), data(json!({"x": "2"})));
    assert_eq!(refused.refusal(), (409, "Conflict"));
    let cause = &refused.body["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldManagerConflict"), &json!(".data.x")));
    server.apply(&format!("{}&force=true", by("two")), data(json!({"x": "2"}))).done(200);
    assert_eq!(server.apply(&by("one"), data(json!({"x": "3"}))).refusal(), (409, "Conflict"), "it changed hands");
    let shared = server.apply(&by("one"), data(json!({"x": "2"}))).done(200);
    assert_eq!(shared["data"], json!({"x": "2"}), "the same value is shared");
    assert!([400, 422].contains(&server.apply(&path, data(json!({}))).code), "somebody must own the fields");
    assert_eq!(server.apply(&by("one"), map("b")).code, 400, "the name is that of the path");
}

#[test]
fn a_deletion_may_have_preconditions() {
    let server = Server::start();
    let path = format!("{}/a", server.maps());
    let made = server.post(&server.maps(), map("a")).done(201);
    let now = server.patch(&path, "application/merge-patch+json", json!({"data": {"x": "1"}})).done(200);
    let only = |field: &str, of: &Value| Some(json!({"preconditions": {field: of["metadata"][field]}}));
    assert_eq!(server.delete(&path, only("resourceVersion", &made)).refusal(), (409, "Conflict"));
    assert_eq!(server.delete(&path, Some(json!({"preconditions": {"uid": "1"}}))).refusal(), (409, "Conflict"));
    let done = server.delete(&path, only("resourceVersion", &now)).done(200);
    assert_eq!((&done["status"], &done["details"]["uid"]), (&json!("Success"), &made["metadata"]["uid"]));
    assert_eq!(server.delete(&path, None).refusal(), (404, "NotFound"));
    for name in ["b", "c"] {
        server.post(&server.maps(), map(name)).done(201);
    }
    server.delete(&format!("{}?fieldSelector=metadata.name%3Db", server.maps()), None).done(200);
    assert_eq!(server.get(&server.maps()).names(), ["c"], "a collection is deleted as it is listed");
}

/// `kubernetes.io/docs/concepts/overview/working-with-objects/finalizers`.
#[test]
fn finalizers_hold_a_deletion_up() {
    let server = Server::start();
    let path = format!("{}/a", server.maps());
    let mut held = map("a");
    held["metadata"]["finalizers"] = json!(["test.millrace.dev/held"]);
    server.post(&server.maps(), held).done(201);
    let marked = server.delete(&path, None).done(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    assert_eq!(server.get(&path).code, 200);
    server.patch(&path, "application/merge-patch+json", json!({"metadata": {"finalizers": null}})).done(200);
    assert_eq!(server.get(&path).code, 404, "the last finalizer was what held it");
}
