//! The directory store: what a watch reports for what people and programs do to files, and who wins a race.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_control::observe::{IP_BLOCK, IP_POOL, KINDS};
use millrace_control::store::{DirectoryStore, ObjectKey, ObjectStore, StoreError};
use proptest::prelude::*;
use serde_json::json;

use crate::support::{TestDirectory, lines, node, pool};

fn counter(name: &str, value: u64) -> serde_json::Value {
    json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": {"name": name}, "spec": {"value": value}})
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::cluster_scoped(IP_BLOCK, name)
}

#[test]
fn a_watch_lists_then_follows() {
    let directory = TestDirectory::new();
    directory.write("nodes.yaml", &(node("a", &["192.0.2.1"]) + &node("b", &["192.0.2.2"])));
    directory.write("notes.txt", "not an object");
    directory.write(".hidden.yaml", &node("hidden", &[]));
    let watch = directory.watch();
    assert_eq!(lines(&watch), ["applied Node a", "applied Node b", "synced"]);
    directory.write("nodes.yaml", &(node("a", &["192.0.2.9"]) + &node("c", &["192.0.2.3"])));
    assert_eq!(lines(&watch), ["deleted Node b", "applied Node a", "applied Node c"]);
    directory.remove("nodes.yaml");
    assert_eq!(lines(&watch), ["deleted Node a", "deleted Node c"]);
}

#[test]
fn a_change_is_seen_soon() {
    let directory = TestDirectory::new();
    let watch = directory.watch();
    assert_eq!(lines(&watch), ["synced"]);
    let start = Instant::now();
    directory.write("a.yaml", &node("a", &[]));
    watch.events.recv_timeout(Duration::from_secs(5)).expect("event");
    // Quiet time is 50 ms here; the rescan that would find it anyway comes after 20 s.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn an_editor_that_renames_is_one_change() {
    let directory = TestDirectory::new();
    directory.write("a.yaml", &node("a", &["192.0.2.1"]));
    let watch = directory.store_with(Duration::from_millis(200)).watch(&KINDS).expect("watch");
    lines(&watch);
    // The way of vim: a backup, a new file under the old name, the backup removed.
    std::fs::rename(directory.path().join("a.yaml"), directory.path().join("a.yaml~")).expect("rename");
    directory.write("a.yaml", &node("a", &["192.0.2.2"]));
    directory.remove("a.yaml~");
    assert_eq!(lines(&watch), ["applied Node a"]);
    // The way of most others: a temporary file renamed over the old one.
    directory.write(".a.yaml.swp", &node("a", &["192.0.2.3"]));
    std::fs::rename(directory.path().join(".a.yaml.swp"), directory.path().join("a.yaml")).expect("rename");
    assert_eq!(lines(&watch), ["applied Node a"]);
}

#[test]
fn a_mounted_config_map_is_replaced_by_swapping_a_link() {
    let directory = TestDirectory::new();
    let path = |name: &str| directory.path().join(name);
    for (version, ip) in [("..1", "192.0.2.1"), ("..2", "192.0.2.2")] {
        std::fs::create_dir(path(version)).expect("directory");
        std::fs::write(path(version).join("a.yaml"), node("a", &[ip])).expect("write");
    }
    symlink("..1", path("..data")).expect("link");
    symlink("..data/a.yaml", path("a.yaml")).expect("link");
    let watch = directory.watch();
    assert_eq!(lines(&watch), ["applied Node a", "synced"]);
    symlink("..2", path("..data_tmp")).expect("link");
    std::fs::rename(path("..data_tmp"), path("..data")).expect("rename");
    assert_eq!(lines(&watch), ["applied Node a"]);
}

#[test]
fn a_half_written_file_keeps_the_last_good_objects() {
    let directory = TestDirectory::new();
    let whole = node("a", &["192.0.2.1"]) + &node("b", &["192.0.2.2"]) + &pool("p", "10.0.0.0/8");
    directory.write("all.yaml", &whole);
    let watch = directory.watch();
    assert_eq!(lines(&watch).len(), 4);
    // Node b is cut inside a value: it stays, and so does the pool, which may have been behind the cut.
    let cut = whole.find("192.0.2.2").expect("address");
    directory.write("all.yaml", &whole[..cut]);
    let problem = lines(&watch).join(" ");
    assert!(problem.starts_with("all.yaml:1") && !problem.contains("deleted"), "{problem}");
    // An empty file is what a full disk leaves behind.
    directory.write("all.yaml", "");
    assert_eq!(lines(&watch), ["all.yaml: is empty; delete the file to delete its objects"]);
    directory.write("all.yaml", &whole);
    assert_eq!(lines(&watch), ["no problems"]);
    directory.remove("all.yaml");
    assert_eq!(lines(&watch), ["deleted IpPool p", "deleted Node a", "deleted Node b"]);
}

#[test]
fn one_bad_document_spares_the_others_of_its_file() {
    let directory = TestDirectory::new();
    directory.write("all.yaml", &(node("a", &[]) + "---\n{ this: is: not: yaml\n" + &node("b", &[])));
    let lines = lines(&directory.watch());
    assert_eq!(lines[..2], ["applied Node a", "applied Node b"]);
    assert!(lines.iter().any(|line| line.starts_with("all.yaml:7: ") || line.starts_with("all.yaml:8: ")), "{lines:?}");
}

#[test]
fn of_an_object_written_twice_the_first_place_counts() {
    let directory = TestDirectory::new();
    directory.write("b.yaml", &node("a", &["192.0.2.2"]));
    directory.write("a.yaml", &node("a", &["192.0.2.1"]));
    let watch = directory.watch();
    let first = lines(&watch);
    assert_eq!(first[..1], ["applied Node a"]);
    assert!(
        first.contains(&"b.yaml:2: Node a: written twice; the one in a.yaml line 2 counts".to_owned()),
        "{first:?}"
    );
    directory.remove("a.yaml");
    assert_eq!(lines(&watch), ["applied Node a", "no problems"]);
}

#[test]
fn a_directory_that_is_away_is_a_problem_and_no_deletion() {
    let directory = TestDirectory::new();
    directory.write("a.yaml", &node("a", &[]));
    let options = millrace_control::store::directory::DirectoryOptions {
        quiet: Duration::from_millis(20),
        rescan: Duration::from_millis(50),
    };
    let store = DirectoryStore::with_options(directory.path(), options).expect("open");
    let watch = store.watch(&KINDS).expect("watch");
    lines(&watch);
    let away = directory.path().with_extension("away");
    std::fs::rename(directory.path(), &away).expect("rename");
    let seen = lines(&watch);
    assert!(seen.len() == 1 && seen[0].starts_with("cannot read the directory"), "{seen:?}");
    std::fs::rename(&away, directory.path()).expect("rename");
    assert_eq!(lines(&watch), ["no problems"]);
    // And it is followed again.
    directory.write("b.yaml", &node("b", &[]));
    assert_eq!(lines(&watch), ["applied Node b"]);
}

#[test]
fn a_large_quiet_directory_costs_little() {
    let directory = TestDirectory::new();
    for number in 0..300 {
        directory.write(&format!("{number}.yaml"), &node(&format!("n{number}"), &["192.0.2.1"]));
    }
    let store = directory.store();
    std::thread::sleep(Duration::from_millis(1100));
    store.list(&IP_POOL).expect("list");
    let start = Instant::now();
    store.list(&IP_POOL).expect("list");
    let settled = start.elapsed();
    println!("scan of 300 unchanged files: {settled:?}");
    assert!(settled < Duration::from_millis(200), "{settled:?}");
}

#[test]
fn writes_are_compare_and_swap() {
    let directory = TestDirectory::new();
    let store = directory.store();
    let created = store.create(&counter("x", 1)).expect("create");
    assert!(directory.path().join("millrace.dev_v1alpha1.ipblock.x.yaml").exists());
    assert!(matches!(store.create(&counter("x", 2)), Err(StoreError::AlreadyExists { .. })));
    let updated = store.update(&counter("x", 3), &created.resource_version).expect("update");
    let stale = store.update(&counter("x", 4), &created.resource_version);
    assert!(
        matches!(&stale, Err(StoreError::Conflict { found, .. }) if **found == *updated.resource_version),
        "{stale:?}"
    );
    assert_eq!(store.get(&key("x")).expect("get").map(|object| object.to_json()), Some(counter("x", 3)));
    assert!(matches!(store.delete(&key("x"), "stale"), Err(StoreError::Conflict { .. })));
    store.delete(&key("x"), &updated.resource_version).expect("delete");
    assert!(matches!(store.delete(&key("x"), &updated.resource_version), Err(StoreError::NotFound { .. })));
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".millrace.lock"]);
}

#[test]
fn what_a_writer_that_died_left_behind_is_removed() {
    let directory = TestDirectory::new();
    directory.write(".millrace.temporary.1.0", "half an object");
    let store = directory.store();
    assert_eq!(store.list(&IP_BLOCK).expect("list"), []);
    store.create(&counter("x", 1)).expect("create");
    assert!(!directory.path().join(".millrace.temporary.1.0").exists());
    // Also by who only opens it: the next write may be far away. Not while somebody is writing.
    directory.write(".millrace.temporary.1.1", "half an object");
    let lock = std::fs::File::open(directory.path().join(".millrace.lock")).expect("a lock file");
    lock.lock().expect("locked");
    directory.store();
    assert!(directory.path().join(".millrace.temporary.1.1").exists());
    drop(lock);
    directory.store();
    assert!(!directory.path().join(".millrace.temporary.1.1").exists());
}

#[test]
fn files_that_people_write_are_never_rewritten() {
    let directory = TestDirectory::new();
    let text = "# mine\n".to_owned() + &pool("p", "10.0.0.0/8") + &pool("q", "10.1.0.0/16");
    directory.write("pools.yaml", &text);
    // Even under the name the program would use, if a person added a second object.
    directory.write("millrace.dev_v1alpha1.ippool.r.yaml", &(pool("r", "10.2.0.0/16") + &pool("s", "10.3.0.0/16")));
    let store = directory.store();
    for name in ["p", "q", "r"] {
        let object = store.get(&ObjectKey::cluster_scoped(IP_POOL, name)).expect("get").expect("object");
        let refused = store.update(&object.to_json(), &object.resource_version);
        assert!(matches!(refused, Err(StoreError::NotOurs { .. })), "{refused:?}");
        assert!(matches!(store.delete(&object.key, &object.resource_version), Err(StoreError::NotOurs { .. })));
        assert!(matches!(store.create(&object.to_json()), Err(StoreError::AlreadyExists { .. })));
    }
    assert_eq!(std::fs::read_to_string(directory.path().join("pools.yaml")).expect("read"), text);
}

/// One of the processes of the test below.
#[test]
#[ignore = "started by increments_of_several_processes_all_count"]
fn increments_of_one_process() {
    let path = std::env::var_os("MILLRACE_TEST_DIRECTORY").expect("directory");
    increment(&DirectoryStore::open(path).expect("open"), 10);
}

#[test]
fn increments_of_several_processes_all_count() {
    let directory = TestDirectory::new();
    directory.store().create(&counter("x", 0)).expect("create");
    let test = std::env::current_exe().expect("test program");
    let start = || {
        let mut command = std::process::Command::new(&test);
        command.args(["--ignored", "--exact", "directory::increments_of_one_process"]);
        command.env("MILLRACE_TEST_DIRECTORY", directory.path()).stdout(std::process::Stdio::null());
        command.spawn().expect("process")
    };
    let processes: Vec<_> = (0..4).map(|_| start()).collect();
    for mut process in processes {
        assert!(process.wait().expect("process").success());
    }
    assert_eq!(value(&directory.store()), 40);
}

fn value(store: &DirectoryStore) -> u64 {
    let object = store.get(&key("x")).expect("get").expect("object");
    object.to_json()["spec"]["value"].as_u64().expect("value")
}

fn increment(store: &DirectoryStore, times: u32) {
    let mut done = 0;
    while done < times {
        let object = store.get(&key("x")).expect("get").expect("object");
        let value = object.to_json()["spec"]["value"].as_u64().expect("value");
        match store.update(&counter("x", value + 1), &object.resource_version) {
            Ok(_) => done += 1,
            Err(error) if error.is_race() => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Stores of one process that share nothing but the files.
#[test]
fn increments_of_several_stores_all_count() {
    let directory = TestDirectory::new();
    directory.store().create(&counter("x", 0)).expect("create");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| increment(&directory.store(), 10));
        }
    });
    assert_eq!(value(&directory.store()), 40);
}

#[test]
fn of_many_creators_one_succeeds() {
    let directory = TestDirectory::new();
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (directory, created) = (&directory, &created);
            scope.spawn(move || match directory.store().create(&counter("x", number)) {
                Ok(_) => drop(created.fetch_add(1, Ordering::Relaxed)),
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => panic!("{error}"),
            });
        }
    });
    assert_eq!(created.load(Ordering::Relaxed), 1);
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        "[ -~äß\\n]{0,12}".prop_map(serde_json::Value::from),
        prop::sample::select(vec![
            "yes",
            "on",
            "null",
            "~",
            "1e3",
            "0x10",
            "02:00:00:00:00:01",
            "::1",
            "- a",
            "# b",
            "---"
        ])
        .prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map("[a-z0-9.:/ #-]{1,8}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn what_is_written_is_read_back(spec in any_json()) {
        let directory = TestDirectory::new();
        let object = json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "x"}, "spec": spec});
        let created = directory.store().create(&object).expect("create");
        let read = directory.store().get(&created.key).expect("get").expect("object");
        prop_assert_eq!(read.to_json(), object);
        prop_assert_eq!(read.resource_version, created.resource_version);
    }
}
