//! Watches.

use serde_json::json;

use crate::server::{Server, version};

fn server_with(name: &str) -> Server {
    let server = Server::start();
    server.post(&server.maps(), json!({"metadata": {"name": name}})).done(201);
    server
}

/// api-concepts, "Efficient detection of changes".
#[test]
fn a_watch_tells_what_happened_behind_a_version() {
    let server = server_with("a");
    let maps = server.maps();
    let then = server.get(&maps).version();
    server.post(&maps, json!({"metadata": {"name": "b"}})).done(201);
    let mut events = server.watch(&format!("{maps}?watch=1&resourceVersion={then}"));
    assert_eq!(events.code, 200);
    assert_eq!(events.short().as_deref(), Some("ADDED b"), "what happened before the watch began");
    server.put(&format!("{maps}/a"), json!({"metadata": {"name": "a"}, "data": {"x": "1"}})).done(200);
    let modified = events.next().expect("an event");
    assert_eq!((&modified["type"], &modified["object"]["data"]["x"]), (&json!("MODIFIED"), &json!("1")));
    assert_eq!(modified["object"]["kind"], "ConfigMap", "events say what the object is");
    server.delete(&format!("{maps}/a"), None).done(200);
    let deleted = events.next().expect("an event");
    assert_eq!((&deleted["type"], &deleted["object"]["data"]["x"]), (&json!("DELETED"), &json!("1")));
    assert!(version(&deleted["object"]) > version(&modified["object"]), "the version of the deletion");
}

/// api-concepts, "Semantics for watch": no version and 0 begin with the present objects.
#[test]
fn a_watch_from_nothing_begins_with_the_present_objects() {
    let server = server_with("a");
    for parameters in ["watch=true", "watch=true&resourceVersion=0"] {
        let mut events = server.watch(&format!("{}?{parameters}", server.maps()));
        assert_eq!(events.short().as_deref(), Some("ADDED a"), "{parameters}");
    }
}

/// api-concepts, "410 Gone responses".
#[test]
fn a_watch_from_a_forgotten_version_ends_with_410() {
    let server = server_with("a");
    if let Some(emulator) = &server.emulator {
        emulator.forget();
    }
    let mut events = server.watch(&format!("{}?watch=1&resourceVersion=1", server.maps()));
    let gone = events.next().expect("an event");
    assert_eq!(
        (&gone["type"], &gone["object"]["kind"], &gone["object"]["code"]),
        (&json!("ERROR"), &json!("Status"), &json!(410))
    );
    assert_eq!(gone["object"]["reason"], "Expired");
    assert_eq!(events.next(), None, "and the stream ends");
}

/// api-concepts, "Watch bookmarks".
#[test]
fn bookmarks_tell_the_version_reached() {
    let server = server_with("a");
    if server.is_real() {
        // One a minute.
        return;
    }
    let then = server.get(&server.maps()).version();
    let mut events =
        server.watch(&format!("{}?watch=1&allowWatchBookmarks=true&resourceVersion={then}", server.maps()));
    // A change of something else.
    server.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).done(201);
    let mut reached = 0;
    while reached <= then {
        let bookmark = events.next().expect("a bookmark");
        assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
        reached = version(&bookmark["object"]);
    }
}

/// api-concepts, "Streaming lists" (KEP-3157).
#[test]
fn initial_events_end_with_a_marked_bookmark() {
    let server = server_with("a");
    let maps = server.maps();
    let query =
        format!("{maps}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
    let mut events = server.watch(&query);
    if server.is_real() && events.code == 422 {
        // A server without the feature says so: also what clients count on.
        return;
    }
    let mut seen = Vec::new();
    let mark = loop {
        let event = events.next().expect("an event");
        match event["type"].as_str() {
            Some("ADDED") => seen.push(event["object"]["metadata"]["name"].clone()),
            Some("BOOKMARK") => break event,
            // An older server does not know the parameter: it sends no mark.
            _ => panic!("{event}"),
        }
    };
    assert!(seen.contains(&json!("a")), "{seen:?}");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    server.post(&maps, json!({"metadata": {"name": "b"}})).done(201);
    assert_eq!(events.short().as_deref(), Some("ADDED b"));
    let refused = server.get(&format!("{maps}?watch=1&sendInitialEvents=true"));
    assert_eq!(refused.refusal(), (422, "Invalid"));
    if let Some(emulator) = &server.emulator {
        emulator.change(|options| options.streaming_lists = false);
        assert_eq!(server.get(&query).refusal(), (422, "Invalid"), "a server without the feature says so");
    }
}

/// An object that comes to be selected is added, one that no longer is is deleted.
#[test]
fn selected_watches_see_objects_come_and_go() {
    let server = server_with("a");
    let maps = server.maps();
    let then = server.get(&maps).version();
    let mut events = server.watch(&format!("{maps}?watch=1&labelSelector=on%3Dyes&resourceVersion={then}"));
    let label = |value: &str| json!({"metadata": {"name": "a", "labels": {"on": value}}});
    server.put(&format!("{maps}/a"), label("yes")).done(200);
    assert_eq!(events.short().as_deref(), Some("ADDED a"));
    server.put(&format!("{maps}/a"), label("no")).done(200);
    assert_eq!(events.short().as_deref(), Some("DELETED a"));
    server.delete(&format!("{maps}/a"), None).done(200);
    server.post(&maps, json!({"metadata": {"name": "b", "labels": {"on": "yes"}}})).done(201);
    assert_eq!(events.short().as_deref(), Some("ADDED b"), "what was not selected is not told");
}

#[test]
fn a_watch_ends_in_order_when_its_time_is_up() {
    let server = server_with("a");
    let mut events = server.watch(&format!("{}?watch=1&timeoutSeconds=1", server.maps()));
    assert_eq!(events.short().as_deref(), Some("ADDED a"));
    assert_eq!(events.short(), None);
}

/// Watches of all namespaces see those of each.
#[test]
fn a_watch_of_all_namespaces_sees_ours() {
    let server = server_with("a");
    let query = format!("/api/v1/configmaps?watch=1&fieldSelector=metadata.namespace%3D{}", server.namespace());
    assert_eq!(server.watch(&query).short().as_deref(), Some("ADDED a"));
}
