//! A server that is away, forgets, cuts, is overloaded, lacks kinds or rights: what the watch makes of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_control::events::{Due, Notice, Outcome, Reporter};
use millrace_control::observe::{CLUSTER_NETWORK_POLICY, IP_BLOCK, KINDS, NODE};
use millrace_control::store::{Event, Kind, Watch};
use millrace_emulator::{Options, Rule};
use serde_json::{Value, json};

use crate::worlds::World;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("what_happened_while_the_server_was_away_is_told", what_happened_while_the_server_was_away_is_told),
    ("a_server_that_forgot_is_listed_anew", a_server_that_forgot_is_listed_anew),
    ("streams_that_are_cut_lose_nothing", streams_that_are_cut_lose_nothing),
    ("error_events_are_survived", error_events_are_survived),
    ("an_overloaded_server_is_waited_for", an_overloaded_server_is_waited_for),
    ("many_pages_make_one_list", many_pages_make_one_list),
    ("bookmarks_spare_a_new_list", bookmarks_spare_a_new_list),
    ("a_kind_that_is_optional_may_be_missing", a_kind_that_is_optional_may_be_missing),
    ("missing_definitions_are_named_and_waited_for", missing_definitions_are_named_and_waited_for),
    ("a_missing_right_is_named", a_missing_right_is_named),
    ("the_deployed_rights_suffice", the_deployed_rights_suffice),
    ("heartbeats_make_no_events", heartbeats_make_no_events),
    ("a_single_request_to_a_server_away_fails_in_words", a_single_request_to_a_server_away_fails_in_words),
];

const NODES: &str = "/api/v1/nodes";
const BLOCKS: &str = "/apis/millrace.dev/v1alpha1/ipblocks";

fn node(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

/// Follows a watch: what each object is, as the events have it.
#[derive(Default)]
struct Picture {
    objects: BTreeMap<String, String>,
    events: usize,
    synced: usize,
    problems: Vec<String>,
}

impl Picture {
    fn take(&mut self, event: Event) {
        match event {
            Event::Applied(object) => {
                self.events += 1;
                let json = object.to_json();
                self.objects.insert(object.key.to_string(), json["status"]["addresses"][0]["address"].to_string());
            }
            Event::Deleted(key) => {
                self.events += 1;
                let known = self.objects.remove(&key.to_string());
                assert!(known.is_some(), "{key} is deleted and was never there");
            }
            Event::Synced => self.synced += 1,
            Event::Problems(problems) => self.problems = problems.iter().map(ToString::to_string).collect(),
        }
    }

    /// Takes events until the picture is as wanted.
    fn until(&mut self, watch: &Watch, wanted: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !wanted(self) {
            let wait = end.saturating_duration_since(Instant::now());
            let event = watch.events.recv_timeout(wait);
            self.take(event.unwrap_or_else(|_| panic!("not as wanted: {:?} {:?}", self.objects, self.problems)));
        }
    }

    /// Takes what comes in a while.
    fn rest(&mut self, watch: &Watch) {
        while let Ok(event) = watch.events.recv_timeout(Duration::from_millis(400)) {
            self.take(event);
        }
    }
}

fn with_nodes(world: &World, count: usize) -> (Watch, Picture) {
    for number in 0..count {
        world.server().put(NODES, node(&format!("n{number}"), "192.0.2.1"));
    }
    let watch = world.store().watch(&[NODE]).expect("watch");
    let mut picture = Picture::default();
    picture.until(&watch, |picture| picture.synced == 1);
    assert_eq!(picture.objects.len(), count);
    (watch, picture)
}

/// Away, changed behind our back, back: exactly the differences are told, whether the server remembers or not.
fn away_and_back(forgets: bool) {
    for world in [World::streaming(), World::paging()] {
        let server = world.server();
        let (watch, mut picture) = with_nodes(&world, 50);
        server.go_away();
        picture.until(&watch, |picture| picture.problems.iter().any(|problem| problem.contains("does not answer")));
        assert_eq!(picture.problems.len(), 1, "said once: {:?}", picture.problems);
        assert_eq!(picture.objects.len(), 50, "nothing is deleted because nobody answers");
        server.put(NODES, node("n0", "192.0.2.9"));
        server.remove(NODES, "n1");
        server.put(NODES, node("new", "192.0.2.2"));
        if forgets {
            server.forget();
        }
        let before = picture.events;
        server.come_back();
        let there = |picture: &Picture, name: &str| picture.objects.contains_key(&format!("Node {name}"));
        picture.until(&watch, |picture| {
            there(picture, "new")
                && !there(picture, "n1")
                && picture.objects["Node n0"].contains("192.0.2.9")
                && picture.problems.is_empty()
        });
        picture.rest(&watch);
        assert_eq!((picture.events - before, picture.synced), (3, 1), "the differences and no more");
    }
}

fn what_happened_while_the_server_was_away_is_told() {
    away_and_back(false);
}

fn a_server_that_forgot_is_listed_anew() {
    away_and_back(true);
}

fn streams_that_are_cut_lose_nothing() {
    for world in [World::streaming(), World::paging()] {
        let server = world.server();
        let (watch, mut picture) = with_nodes(&world, 10);
        for round in 0..40 {
            for number in 0..10 {
                server.put(NODES, node(&format!("n{number}"), &format!("192.0.2.{}", round + 1)));
            }
            server.put(NODES, node(&format!("more{round}"), "192.0.2.1"));
            server.remove(NODES, &format!("more{}", round / 2));
            if round % 8 == 3 {
                server.cut_watches();
            } else if round % 8 == 7 {
                server.end_watches();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        server.put(NODES, node("last", "192.0.2.1"));
        picture.until(&watch, |picture| picture.objects.contains_key("Node last"));
        picture.rest(&watch);
        let listed = world.store().list(&NODE).expect("list");
        let truth: BTreeMap<_, _> = listed
            .iter()
            .map(|object| (object.key.to_string(), object.to_json()["status"]["addresses"][0]["address"].to_string()))
            .collect();
        assert_eq!(picture.objects, truth);
        assert_eq!(picture.synced, 1);
    }
}

fn error_events_are_survived() {
    let world = World::streaming();
    let server = world.server();
    let (watch, mut picture) = with_nodes(&world, 5);
    for (round, code) in [410, 500, 504, 410].into_iter().enumerate() {
        server.fail_watches(code);
        let name = format!("behind{round}");
        server.put(NODES, node(&name, "192.0.2.1"));
        picture.until(&watch, |picture| picture.objects.contains_key(&format!("Node {name}")));
    }
    picture.rest(&watch);
    assert_eq!((picture.events, picture.synced), (5 + 4, 1), "no object is told twice");
}

fn an_overloaded_server_is_waited_for() {
    for world in [World::streaming(), World::paging()] {
        let server = world.server();
        server.put(NODES, node("a", "192.0.2.1"));
        server.fail_next([429, 500, 503, 504, 500, 410]);
        let watch = world.store().watch(&[NODE]).expect("watch");
        let mut picture = Picture::default();
        picture.until(&watch, |picture| picture.synced == 1 && picture.objects.len() == 1);
    }
}

fn many_pages_make_one_list() {
    let world = World::paging();
    let (watch, mut picture) = with_nodes(&world, 1234);
    let server = world.server();
    assert!(server.requests()["list nodes"] >= 3, "{:?}", server.requests());
    assert_eq!(world.store().list(&NODE).expect("list").len(), 1234);
    // A list that is read anew and breaks between two pages deletes nothing.
    server.remove(NODES, "n7");
    server.forget();
    server.fail_watches(410);
    picture.until(&watch, |picture| !picture.objects.contains_key("Node n7"));
    picture.rest(&watch);
    assert_eq!((picture.objects.len(), picture.synced), (1233, 1));
}

fn bookmarks_spare_a_new_list() {
    let world = World::emulator(Options { bookmark_every: Duration::from_millis(50), ..Options::default() });
    let server = world.server();
    let (watch, mut picture) = with_nodes(&world, 3);
    let watches = || server.requests()["watch nodes"];
    assert_eq!(watches(), 1);
    // Only other kinds change; then the server forgets what was before.
    for number in 0..20 {
        server.put("/api/v1/namespaces", json!({"metadata": {"name": format!("ns{number}")}}));
    }
    std::thread::sleep(Duration::from_millis(500));
    server.forget();
    server.cut_watches();
    // Else the old stream might still bring what comes now.
    let end = Instant::now() + Duration::from_secs(30);
    while watches() < 2 {
        assert!(Instant::now() < end, "the watch is not taken up");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.put(NODES, node("behind", "192.0.2.1"));
    picture.until(&watch, |picture| picture.objects.contains_key("Node behind"));
    assert_eq!((picture.events, watches()), (4, 2), "taken up where the bookmark was: one more watch, no list");
}

fn a_kind_that_is_optional_may_be_missing() {
    let world = World::streaming();
    let watch = world.store().watch(&[NODE, CLUSTER_NETWORK_POLICY]).expect("watch");
    let mut picture = Picture::default();
    picture.until(&watch, |picture| picture.synced == 1);
    assert!(picture.problems.is_empty(), "{:?}", picture.problems);
}

fn missing_definitions_are_named_and_waited_for() {
    let world = World::streaming();
    let server = world.server();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = millrace_control::observe::custom_resource_definitions()
        .into_iter()
        .find(|definition| definition["spec"]["names"]["kind"] == "IpBlock")
        .expect("ours");
    let connection = delete_over_http(server.address(), &format!("{definitions}/ipblocks.millrace.dev"));
    assert!(connection.starts_with("HTTP/1.1 200"), "{connection}");
    let watch = world.store().watch(&[NODE, IP_BLOCK]).expect("watch");
    let mut picture = Picture::default();
    picture.until(&watch, |picture| picture.problems.iter().any(|problem| problem.contains("ipblocks")));
    assert_eq!(picture.synced, 0, "half a cluster is no cluster");
    server.put(definitions, definition);
    picture.until(&watch, |picture| picture.synced == 1 && picture.problems.is_empty());
}

/// One request without a client.
fn delete_over_http(address: std::net::SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connected");
    write!(stream, "DELETE {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn rule(groups: &[&str], resources: &[&str]) -> Rule {
    let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Rule { groups: texts(groups), resources: texts(resources), verbs: texts(&["get", "list", "watch"]) }
}

fn a_missing_right_is_named() {
    let world = World::emulator(Options { rules: Some(vec![rule(&[""], &["nodes"])]), ..Options::default() });
    let watch = world.store().watch(&[NODE, IP_BLOCK]).expect("watch");
    let mut picture = Picture::default();
    picture.until(&watch, |picture| picture.problems.iter().any(|problem| problem.contains("forbidden")));
    assert!(picture.problems[0].contains("ipblocks"), "{:?}", picture.problems);
    assert_eq!(picture.synced, 0, "tables without what may not be read would be wrong");
    world.server().change(|options| options.rules = Some(vec![rule(&["*"], &["*"])]));
    picture.until(&watch, |picture| picture.synced == 1 && picture.problems.is_empty());
}

/// `deploy/rbac.yaml` is no narrower than what the agent does. Single requests are no wider either; what is watched is listed too
/// where a server does not stream lists.
fn the_deployed_rights_suffice() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rbac.yaml")).expect("rbac.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole").expect("a role");
    let rules = Rule::of_role(role);
    assert!(rules.iter().all(|rule| !rule.verbs.iter().chain(&rule.resources).any(|word| word == "*")), "no wildcards");
    let options = Options { rules: Some(rules.clone()), token: Some("secret".to_owned()), ..Options::default() };
    let world = World::emulator(options);
    let store = world.store();
    let watch = store.watch(&KINDS).expect("watch");
    let mut picture = Picture::default();
    picture.until(&watch, |picture| picture.synced == 1);
    assert!(picture.problems.is_empty(), "{:?}", picture.problems);
    let made = store.create(&world.block("x", "a")).expect("create");
    let made = store.update(&world.block("x", "b"), &made.resource_version).expect("update");
    assert!(store.get(&made.key).expect("may be asked").is_some());
    let gone = millrace_control::store::ObjectKey::cluster_scoped(NODE, "gone");
    assert_eq!(store.get(&gone).expect("may be asked"), None);
    store.delete(&made.key, &made.resource_version).expect("delete");
    let set = millrace_control::store::ObjectKey {
        kind: Kind::new("apps/v1", "StatefulSet"),
        namespace: Some("default".to_owned()),
        name: "db".to_owned(),
    };
    assert_eq!(store.get(&set).expect("may be asked"), None);
    let sink = world.store_on_server();
    let node = millrace_control::cluster::NodeName::new("a").expect("a name");
    let notice = Notice::started(&node, "1.0.0");
    let reporter = Reporter::new(node);
    for count in [None, Some(2)] {
        let due = Due { notice: notice.clone(), count };
        assert_eq!(reporter.write(&sink, &due), Outcome::Written { ours: true });
    }
    let asked = world.server().requests();
    let rights = rules.iter().flat_map(|rule| {
        let single = rule.verbs.iter().filter(|verb| !["list", "watch"].contains(&verb.as_str()));
        single.flat_map(|verb| rule.resources.iter().map(move |resource| format!("{verb} {resource}")))
    });
    let unused: Vec<String> = rights.filter(|right| !asked.contains_key(right)).collect();
    assert_eq!(unused, Vec::<String>::new(), "nothing above needs these: {asked:?}");
}

fn heartbeats_make_no_events() {
    let world = World::streaming();
    let server = world.server();
    let (watch, mut picture) = with_nodes(&world, 3);
    for beat in 0..20 {
        let mut node = node("n0", "192.0.2.1");
        node["status"]["conditions"] =
            json!([{"type": "DiskPressure", "status": "False", "lastHeartbeatTime": beat.to_string()}]);
        node["status"]["images"] = json!([{"names": [format!("image-{beat}")]}]);
        server.put(NODES, node);
    }
    server.put(NODES, node("last", "192.0.2.1"));
    picture.until(&watch, |picture| picture.objects.contains_key("Node last"));
    assert_eq!(picture.events, 3 + 1 + 1, "the condition came once; its time and the images are nobody's concern");
}

fn a_single_request_to_a_server_away_fails_in_words() {
    let world = World::streaming();
    let store = world.store();
    store.create(&world.block("x", "a")).expect("create");
    world.server().go_away();
    std::thread::sleep(Duration::from_millis(50));
    let error = store.list(&IP_BLOCK).expect_err("away");
    assert!(error.to_string().contains("does not answer") && !error.is_race(), "{error}");
    world.server().come_back();
    let end = Instant::now() + Duration::from_secs(5);
    while store.list(&IP_BLOCK).is_err() {
        assert!(Instant::now() < end, "it stays away");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.server().put(BLOCKS, world.block("y", "a"));
    assert_eq!(store.list(&IP_BLOCK).expect("list").len(), 2);
}
