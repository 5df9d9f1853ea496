//! Question: what does a change of one Service cost the control plane?
//!
//! Shape: 10,000 Services of 10 endpoints. `one_endpoint` is the whole way of a change: plan, compile, comparison.
//! `not_a_change` is what the walk over all Services costs.
//! Unit: time for a change.
//! Reference: `from_nothing`, the same tables made without what was made before.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use millrace_control::cluster::{Cluster, NodeName};
use millrace_control::compile::compile;
use millrace_control::observe::{Observed, Touched};
use millrace_control::plan::{LocalView, Planner};
use millrace_control::store::{Event, Located, Object};
use millrace_engine::tables::change;
use serde_json::json;

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;

fn object(json: &serde_json::Value) -> Object {
    Object::read(Located::from(json), None).expect("object")
}

fn slice(number: usize, endpoints: usize) -> Object {
    let endpoint = |at: usize| json!({"addresses": [format!("10.{}.{}.{}", 128 + number / 6_250, number / 25 % 250, number % 25 * 10 + at)]});
    object(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("s{number}-x"), "labels": {"kubernetes.io/service-name": format!("s{number}")}},
        "ports": [{"port": 8080}], "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    }))
}

fn cluster() -> Observed {
    let mut observed = Observed::default();
    for number in 0..SERVICES {
        let ip = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        observed.take(Event::Applied(object(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
            "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
        }))));
        observed.take(Event::Applied(slice(number, ENDPOINTS)));
    }
    assert_eq!(observed.problems(), []);
    observed
}

fn changed(observed: &Observed) -> Cluster {
    let mut observed = observed.clone();
    observed.take(Event::Applied(slice(SERVICES / 2, ENDPOINTS - 1)));
    observed.cluster().clone()
}

fn bench(criterion: &mut Criterion) {
    let observed = cluster();
    let (before, after) = (observed.cluster().clone(), changed(&observed));
    let local = LocalView::new(NodeName::new("a").expect("name"));
    let mut planner = Planner::default();
    let first = Arc::new(planner.plan(&before, &local, &Touched::everything(&before)).plan);
    let tables = compile(&first, None).expect("tables");
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(20);
    let mut forwards = true;
    group.bench_function("one_endpoint", |bencher| {
        let (mut plan, mut tables) = (Arc::clone(&first), tables.clone());
        bencher.iter(|| {
            // There and back: each time one endpoint differs.
            let cluster = if forwards { &after } else { &before };
            forwards = !forwards;
            let next = Arc::new(planner.plan(black_box(cluster), &local, &Touched::default()).plan);
            let new = compile(&next, Some((&plan, &tables))).expect("tables");
            let changes = change::changes(&tables, &new);
            (plan, tables) = (next, new);
            changes
        });
    });
    group.bench_function("from_nothing", |bencher| {
        bencher.iter(|| {
            let plan = Planner::default().plan(black_box(&after), &local, &Touched::everything(&after)).plan;
            compile(&plan, None).expect("tables")
        });
    });
    group.bench_function("not_a_change", |bencher| {
        drop(planner.plan(&before, &local, &Touched::everything(&before)));
        bencher.iter(|| planner.plan(black_box(&before), &local, &Touched::default()));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
