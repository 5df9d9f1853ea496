//! Events on a server: what is written, once from all nodes, and what a server may answer.

use std::time::Duration;

use millrace_control::cluster::NodeName;
use millrace_control::events::{Due, EventSink, Notice, Outcome, Reporter};
use millrace_control::observe::IP_POOL;
use millrace_control::problem::Problem;
use millrace_control::store::{Kind, ObjectKey};
use millrace_emulator::Options;
use serde_json::{Value, json};

use crate::worlds::World;

/// The tests, by name.
pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_event_names_the_object_and_comes_once_from_all_nodes",
        an_event_names_the_object_and_comes_once_from_all_nodes,
    ),
    ("what_comes_back_counts_in_the_series", what_comes_back_counts_in_the_series),
    ("a_server_that_refuses_or_is_away_is_told_apart", a_server_that_refuses_or_is_away_is_told_apart),
];

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("a name")
}

fn reporter(name: &str) -> Reporter {
    Reporter::new(node(name))
}

/// A problem of a Service that is on the server.
fn problem(world: &World) -> Problem {
    world.server().put(SERVICES, json!({"metadata": {"name": "shop"}, "spec": {"clusterIP": "10.96.0.10"}}));
    let key =
        ObjectKey { kind: Kind::new("v1", "Service"), namespace: Some("default".to_owned()), name: "shop".to_owned() };
    Problem::new("10.96.0.10:80 TCP belongs to Service default/web already").of(&key).kind("address_contested")
}

fn first(notice: &Notice) -> Due {
    Due { notice: notice.clone(), count: None }
}

/// Events that the server has, as one of the two groups shows them.
fn events(world: &World, collection: &str) -> Vec<Value> {
    world.server().list(&format!("{collection}/namespaces/default/events"))
}

fn an_event_names_the_object_and_comes_once_from_all_nodes() {
    let world = World::streaming();
    let store = world.store_on_server();
    let problem = problem(&world);
    let notice = Notice::of(&problem, &node("a"));
    let (a, b) = (reporter("a"), reporter("b"));
    assert_eq!(a.write(&store, &first(&notice)), Outcome::Written { ours: true });
    assert_eq!(b.write(&store, &first(&Notice::of(&problem, &node("b")))), Outcome::Written { ours: false });
    let written = events(&world, "/apis/events.k8s.io/v1");
    assert_eq!(written.len(), 1, "{written:?}");
    let event = &written[0];
    assert_eq!(event["reason"], "AddressContested");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reportingInstance"], "a");
    assert_eq!(event["note"], problem.message);
    let regarding = &event["regarding"];
    assert_eq!(
        (&regarding["kind"], &regarding["name"], &regarding["namespace"]),
        (&json!("Service"), &json!("shop"), &json!("default"))
    );
    assert!(regarding["uid"].as_str().is_some_and(|uid| uid.len() == 36), "{regarding}");
    // As `kubectl get events` reads it.
    let core = events(&world, "/api/v1");
    assert_eq!((&core[0]["message"], &core[0]["involvedObject"]), (&event["note"], regarding));
    // One of an object that is not there, and of one without a namespace.
    let pool = Problem::new("x".repeat(3000)).of(&ObjectKey::cluster_scoped(IP_POOL, "pods"));
    assert_eq!(a.write(&store, &first(&Notice::of(&pool, &node("a")))), Outcome::Written { ours: true });
    assert_eq!(events(&world, "/apis/events.k8s.io/v1").len(), 2);
}

fn what_comes_back_counts_in_the_series() {
    let world = World::streaming();
    let store = world.store_on_server();
    let notice = Notice::of(&problem(&world), &node("a"));
    let reporter = reporter("a");
    assert_eq!(reporter.write(&store, &first(&notice)), Outcome::Written { ours: true });
    let again = |count| Due { notice: notice.clone(), count: Some(count) };
    assert_eq!(reporter.write(&store, &again(2)), Outcome::Written { ours: true });
    assert_eq!(reporter.write(&store, &again(3)), Outcome::Written { ours: true });
    let written = events(&world, "/apis/events.k8s.io/v1");
    assert_eq!((written.len(), &written[0]["series"]["count"]), (1, &json!(3)));
    // The server keeps Events for an hour: then it is written anew.
    let name = written[0]["metadata"]["name"].as_str().expect("a name");
    world.server().remove("/apis/events.k8s.io/v1/namespaces/default/events", name);
    assert_eq!(reporter.write(&store, &again(4)), Outcome::Written { ours: true });
    assert_eq!(events(&world, "/apis/events.k8s.io/v1")[0]["series"], Value::Null);
}

fn a_server_that_refuses_or_is_away_is_told_apart() {
    let world = World::emulator(Options { rules: Some(Vec::new()), ..Options::default() });
    let store = world.store_on_server();
    let reporter = reporter("a");
    let notice = Notice::of(&problem(&world), &node("a"));
    assert_eq!(reporter.write(&store, &first(&notice)), Outcome::Refused, "no right");
    world.server().change(|options| options.rules = None);
    // The look for the object's uid is answered so too, and does not matter.
    world.server().fail_next([500, 500]);
    assert_eq!(reporter.write(&store, &first(&notice)), Outcome::Away, "overloaded");
    world.server().go_away();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(reporter.write(&store, &first(&notice)), Outcome::Away);
    world.server().come_back();
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while reporter.write(&store, &first(&notice)) != (Outcome::Written { ours: true }) {
        assert!(std::time::Instant::now() < end, "it stays away");
        std::thread::sleep(Duration::from_millis(20));
    }
    let missing = store.repeat(&notice.regarding, "nobody", json!({"series": {"count": 2}}));
    assert!(matches!(missing, Err(millrace_control::store::StoreError::NotFound { .. })), "{missing:?}");
}
