//! Discovery, single objects, lists.

use serde_json::json;

use crate::server::{GADGETS, Server, version};

fn with_maps(names: &[&str]) -> Server {
    let server = Server::start();
    for name in names {
        server.post(&server.maps(), json!({"metadata": {"name": name, "labels": {"name": name}}})).done(201);
    }
    server
}

/// api-concepts, "API discovery": the paths a client starts from.
#[test]
fn discovery_leads_to_every_resource() {
    let server = Server::start();
    server.define_gadgets();
    assert_eq!(server.get("/api").done(200)["versions"][0], "v1");
    let core = server.get("/api/v1").done(200);
    let listed =
        |name: &str| core["resources"].as_array().expect("a list").iter().find(|found| found["name"] == name).cloned();
    assert_eq!(listed("nodes").expect("nodes")["namespaced"], false);
    assert_eq!(listed("pods").expect("pods")["kind"], "Pod");
    assert!(listed("pods/status").is_some());
    let groups = server.get("/apis").done(200);
    let group = groups["groups"].as_array().expect("a list").iter().find(|group| group["name"] == "test.millrace.dev");
    assert_eq!(group.expect("our group")["preferredVersion"]["groupVersion"], "test.millrace.dev/v1");
    assert_eq!(server.get("/apis/test.millrace.dev/v1").done(200)["resources"][0]["name"], "gadgets");
    assert!(server.get("/version").done(200)["major"].is_string());
    assert_eq!(server.get("/apis/test.millrace.dev/v1/gizmos").code, 404);
}

#[test]
fn an_object_that_is_not_there_is_named() {
    let server = Server::start();
    let missing = server.get(&format!("{}/nobody", server.maps()));
    assert_eq!(missing.refusal(), (404, "NotFound"));
    assert_eq!(missing.body["details"], json!({"name": "nobody", "kind": "configmaps"}));
}

/// api-concepts, "Retrieving large results sets in chunks": pages are of one moment.
#[test]
fn pages_of_a_list_are_of_one_moment() {
    let server = with_maps(&["a", "b", "c", "d", "e"]);
    let maps = server.maps();
    let query = format!("{maps}?labelSelector=name&limit=2");
    let first = server.get(&query);
    assert_eq!((first.code, first.names()), (200, vec!["a", "b"]));
    let token = first.body["metadata"]["continue"].as_str().expect("more follows").to_owned();
    server.delete(&format!("{maps}/c"), None).done(200);
    server.post(&maps, json!({"metadata": {"name": "cc", "labels": {"name": "cc"}}})).done(201);
    server
        .put(&format!("{maps}/e"), json!({"metadata": {"name": "e", "labels": {"name": "e"}}, "data": {"new": "1"}}))
        .done(200);
    let second = server.get(&format!("{query}&continue={token}"));
    assert_eq!(second.names(), ["c", "d"], "as it was when the list began");
    assert_eq!(second.version(), first.version());
    let token = second.body["metadata"]["continue"].as_str().expect("more follows").to_owned();
    let third = server.get(&format!("{query}&continue={token}"));
    assert_eq!(third.names(), ["e"]);
    assert!(third.body["items"][0]["data"].is_null(), "{third:?}");
    assert!(third.body["metadata"]["continue"].as_str().is_none_or(str::is_empty));
    assert_eq!(server.get(&format!("{maps}?labelSelector=name")).names(), ["a", "b", "cc", "d", "e"]);
}

/// api-concepts, "410 Gone responses"; the token to go on from another moment is told.
#[test]
fn a_list_that_took_too_long_is_gone() {
    let server = with_maps(&["a", "b", "c"]);
    let Some(emulator) = &server.emulator else { return };
    let query = format!("{}?limit=2", server.maps());
    let token = server.get(&query).body["metadata"]["continue"].as_str().expect("more").to_owned();
    server.delete(&format!("{}/c", server.maps()), None).done(200);
    emulator.forget();
    let gone = server.get(&format!("{query}&continue={token}"));
    assert_eq!(gone.refusal(), (410, "Expired"));
    let token = gone.body["metadata"]["continue"].as_str().expect("a token for the rest").to_owned();
    assert_eq!(server.get(&format!("{query}&continue={token}")).names(), Vec::<&str>::new());
    let exact = format!("{}?resourceVersion=2&resourceVersionMatch=Exact", server.maps());
    assert_eq!(server.get(&exact).refusal(), (410, "Expired"));
}

/// api-concepts, "Semantics for get and list", its table.
#[test]
fn versions_in_a_list_mean_what_the_table_says() {
    let server = with_maps(&["a"]);
    let maps = server.maps();
    let then = server.get(&maps).version();
    server.post(&maps, json!({"metadata": {"name": "b"}})).done(201);
    let list = |parameters: &str| server.get(&format!("{maps}?{parameters}"));
    assert_eq!(list(&format!("resourceVersion={then}&resourceVersionMatch=Exact")).names(), ["a"]);
    assert_eq!(
        list(&format!("resourceVersion={then}&limit=5")).names(),
        ["a"],
        "exact, if a limit and no match is given"
    );
    for parameters in
        [format!("resourceVersion={then}&resourceVersionMatch=NotOlderThan"), format!("resourceVersion={then}")]
    {
        let newer = list(&parameters);
        // Out of a server's watch cache they come in any order.
        let mut names = newer.names();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
    }
    assert_eq!(list("").names(), ["a", "b"]);
    assert!(list("resourceVersion=0").code == 200);
    assert_eq!(list("resourceVersionMatch=Exact").refusal(), (422, "Invalid"));
    assert_eq!(list("resourceVersion=0&resourceVersionMatch=Exact").refusal(), (422, "Invalid"));
    assert_eq!(list("resourceVersion=0&resourceVersionMatch=Sometimes").refusal(), (422, "Invalid"));
    assert_eq!(list("resourceVersion=x").code, if server.is_real() { list("resourceVersion=x").code } else { 400 });
    let future = list(&format!("resourceVersion={}&resourceVersionMatch=NotOlderThan", then + 1_000_000));
    assert_eq!(future.refusal(), (504, "Timeout"));
    assert_eq!(future.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

/// Labels and selectors; field selectors.
#[test]
fn selectors_select() {
    let server = with_maps(&["a", "b", "c"]);
    let list = |parameters: &str| server.get(&format!("{}?{parameters}", server.maps()));
    assert_eq!(list("labelSelector=name%3Db").names(), ["b"]);
    assert_eq!(list("labelSelector=name%20in%20(a,c)").names(), ["a", "c"]);
    assert_eq!(list("labelSelector=name,name%20notin%20(a,c)").names(), ["b"]);
    assert_eq!(list("labelSelector=name,name!%3Db").names(), ["a", "c"]);
    assert_eq!(list("labelSelector=!name").names(), Vec::<&str>::new());
    assert_eq!(list("fieldSelector=metadata.name%3Dc").names(), ["c"]);
    assert_eq!(list("fieldSelector=metadata.name!%3Dc,metadata.name!%3Da").names(), ["b"]);
    assert_eq!(list("fieldSelector=data.x%3Dc").refusal(), (400, "BadRequest"));
}

/// Built-in kinds do not say in a list what each item is; others do.
#[test]
fn items_are_typed_only_where_a_definition_made_them() {
    let server = with_maps(&["a"]);
    server.define_gadgets();
    let name = server.gadget("typed");
    server
        .post(GADGETS, json!({"apiVersion": "test.millrace.dev/v1", "kind": "Gadget", "metadata": {"name": name}}))
        .done(201);
    let maps = server.get(&server.maps()).done(200);
    assert_eq!((&maps["kind"], maps["items"][0].get("kind")), (&json!("ConfigMapList"), None));
    let gadgets = server.get(&format!("{GADGETS}?fieldSelector=metadata.name%3D{name}")).done(200);
    assert_eq!((&gadgets["items"][0]["kind"], gadgets["items"].as_array().map(Vec::len)), (&json!("Gadget"), Some(1)));
    assert!(version(&gadgets) >= version(&gadgets["items"][0]));
    server.delete(&format!("{GADGETS}/{name}"), None).done(200);
}
