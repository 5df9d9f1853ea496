//! What the verbs mean, on a network that only notes what it was asked.

mod moments;

use super::*;
use crate::cluster::{InterfaceName, NetworkName};
use millrace_cni::spec::code;
use millrace_engine::packet::{Mac, PortIndex};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Notes calls; refuses while told to.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<String>>,
    refuse: Mutex<bool>,
    /// Containers whose addresses were given back.
    released: Mutex<Vec<String>>,
    /// Containers that hold addresses.
    holders: Mutex<Vec<AttachmentKey>>,
    /// Interfaces beside the first, of every pod; one named `bad` cannot be made.
    further: Mutex<Vec<&'static str>>,
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container_id: container.into(), interface: "eth0".into() }
}

impl Notes {
    fn note(&self, call: String) -> Result<(), CniFailure> {
        self.calls.lock().expect("no test panics here").push(call);
        if *self.refuse.lock().expect("no test panics here") {
            return Err(CniFailure::NotReady("told to refuse".into()));
        }
        Ok(())
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("no test panics here"))
    }
}

impl PodNetwork for Notes {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        let pod = request.pod.as_ref().map_or("-", |pod| pod.name.as_str());
        let further = request.further.as_ref().map(|network| format!(" {} in {network}", request.key.interface));
        self.note(format!("add {} {pod}{}", request.key.container_id, further.unwrap_or_default()))?;
        if request.key.interface == "bad" {
            return Err(CniFailure::Refused("bad".into()));
        }
        Ok(AddResult {
            port: PortIndex(7 + request.key.interface.len() as u16 - 4 + u16::from(request.key.interface == "net1")),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            mtu_bytes: 1450,
            addresses: vec![PodAddress {
                address: "10.1.0.5/32".parse().expect("an address"),
                gateway: Some("169.254.1.1".parse().expect("an address")),
            }],
            network: None,
            device: PodDevice::Tap,
            host_interface: None,
            routes: vec![PodRoute { destination: "0.0.0.0/0".parse().expect("a prefix"), gateway: None }],
        })
    }

    fn further(&self, _request: &AddRequest) -> Result<Vec<FurtherInterface>, CniFailure> {
        let further = self.further.lock().expect("no test panics here");
        let wanted = further.iter().map(|name| FurtherInterface {
            interface: InterfaceName::new(name).expect("name"),
            network: NetworkName::new("blue").expect("name"),
        });
        Ok(wanted.collect())
    }

    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure> {
        let record = match &request.record {
            None => "no record",
            Some(record) if record.port.is_some() => "whole record",
            Some(_) => "incomplete record",
        };
        let namespace = if request.namespace.is_some() { "namespace" } else { "no namespace" };
        let further = if request.key.interface == "eth0" { "" } else { &request.key.interface };
        self.note(format!("delete {} {record} {namespace} {further}", request.key.container_id).trim_end().to_owned())
    }

    fn check(&self, attachment: &Attachment) -> Result<(), CniFailure> {
        let mtu = attachment.port.as_ref().map_or(0, |port| port.mtu_bytes);
        let further = if attachment.key.interface == "eth0" { "" } else { &attachment.key.interface };
        self.note(format!("check {} mtu {mtu} {further}", attachment.key.container_id).trim_end().to_owned())
    }

    fn status(&self) -> Result<(), CniFailure> {
        self.note("status".into())
    }

    fn release(&self, key: &AttachmentKey, _port: Option<PortIndex>) {
        self.released.lock().expect("no test panics here").push(key.container_id.clone());
    }

    fn holders(&self) -> Vec<AttachmentKey> {
        self.holders.lock().expect("no test panics here").clone()
    }
}

/// A directory of one test, with a file for each network namespace: an inode is all the server looks at.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new() -> Place {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("millrace-cni-server-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        Place { directory }
    }

    fn namespace(&self, name: &str) -> String {
        let path = self.directory.join(name);
        // A new file beside the old one has another inode; renamed over it, the path leads to a new namespace.
        let beside = self.directory.join(format!("{name}.new"));
        fs::write(&beside, "").and_then(|()| fs::rename(&beside, &path)).expect("a file");
        path.to_str().expect("temporary paths are text").to_owned()
    }

    fn record(&self) -> PathBuf {
        self.directory.join("attachments.json")
    }

    fn server(&self) -> (CniServer, Arc<Notes>) {
        let notes = Arc::new(Notes::default());
        let (attachments, problem) = Attachments::load(&self.record()).expect("readable");
        assert_eq!(problem, None);
        (CniServer::new(notes.clone(), Arc::new(attachments)), notes)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn add(namespace: &str) -> protocol::AddRequest {
    let arguments = [("K8S_POD_NAMESPACE", "default"), ("K8S_POD_NAME", "web-0"), ("K8S_POD_UID", "u-1")];
    protocol::AddRequest {
        network: "millrace".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        network_namespace: namespace.into(),
        arguments: arguments.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect(),
        addresses: Vec::new(),
        mac: None,
        port_mappings: Vec::new(),
        bandwidth: protocol::Bandwidth::default(),
    }
}

fn delete(namespace: Option<&str>) -> protocol::DeleteRequest {
    protocol::DeleteRequest {
        network: "millrace".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        network_namespace: namespace.map(str::to_owned),
    }
}

#[test]
fn an_attachment_is_made_once_recorded_and_taken_away_as_often_as_asked() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    let answer = server.add(add(&namespace)).expect("attached");
    assert_eq!((answer.mac.as_str(), answer.mtu_bytes), ("02:00:00:00:00:07", 1450));
    assert_eq!(answer.addresses[0].address, "10.1.0.5/32");
    assert_eq!(answer.addresses[0].gateway.as_deref(), Some("169.254.1.1"));
    let again = server.add(add(&namespace)).expect_err("the interface exists");
    assert_eq!(again.code(), code::INVALID_ENVIRONMENT);
    assert!(again.to_string().contains("CNI_IFNAME") && again.to_string().contains("CNI_CONTAINERID"), "{again}");
    assert_eq!(notes.taken(), ["add c1 web-0"]);

    // Another process finds the record.
    let (server, notes) = place.server();
    let records = server.attachments.all();
    assert_eq!(records.len(), 1);
    let port = records[0].port.as_ref().expect("a whole record");
    assert_eq!((port.index, port.mac, port.mtu_bytes), (PortIndex(7), Mac([2, 0, 0, 0, 0, 7]), 1450));
    assert_eq!(records[0].pod.as_ref().and_then(|pod| pod.uid.as_deref()), Some("u-1"));

    server.delete(delete(Some(&namespace))).expect("detached");
    server.delete(delete(None)).expect("detached again, as containerd does");
    server.delete(delete(Some(""))).expect("and again");
    assert_eq!(
        notes.taken(),
        ["delete c1 whole record namespace", "delete c1 no record no namespace", "delete c1 no record no namespace"]
    );
    assert!(server.attachments.all().is_empty());
}

#[test]
fn interfaces_beside_the_first_come_and_go_with_it() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    *notes.further.lock().expect("whole") = vec!["net1"];
    let answer = server.add(add(&namespace)).expect("attached");
    assert_eq!(answer.further.iter().map(|further| further.name.as_str()).collect::<Vec<_>>(), ["net1"]);
    let result = answer.into_result(&add(&namespace));
    let names: Vec<&str> = result.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!((names, result.ips[1].interface), (vec!["eth0", "net1"], Some(1)));
    assert_eq!(notes.taken(), ["add c1 web-0", "add c1 web-0 net1 in blue"]);

    // Another process knows them; CHECK looks at both, GC keeps both, DEL takes both, the first last.
    let (server, notes) = place.server();
    let request = |further: Option<Vec<protocol::CheckedInterface>>, routes| protocol::CheckRequest {
        network: "millrace".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        network_namespace: namespace.clone(),
        mac: None,
        addresses: vec!["10.1.0.5".parse().expect("address")],
        mtu_bytes: None,
        further,
        routes,
    };
    let told = |name: &str, mac: &str, address: &str| protocol::CheckedInterface {
        name: name.into(),
        mac: Some(mac.into()),
        addresses: vec![address.parse().expect("address")],
    };
    let route =
        |gateway: &str| protocol::AnswerRoute { destination: "0.0.0.0/0".into(), gateway: Some(gateway.into()) };
    let as_made =
        || Some(vec![told("lo", "00:00:00:00:00:00", "127.0.0.1"), told("net1", "02:00:00:00:00:07", "10.1.0.5")]);
    server.check(request(as_made(), Some(vec![route("169.254.1.1")]))).expect("as it was made");
    assert_eq!(notes.taken(), ["check c1 mtu 1450", "check c1 mtu 1450 net1"]);
    for (further, routes, named) in [
        (Some(Vec::new()), None, "prevResult lacks the interface net1"),
        (
            Some(vec![told("net1", "02:00:00:00:00:08", "10.1.0.5")]),
            None,
            "has the MAC address 02:00:00:00:00:08 at net1",
        ),
        (Some(vec![told("net1", "02:00:00:00:00:07", "10.1.0.6")]), None, "prevResult lacks 10.1.0.5/32 at net1"),
        (as_made(), Some(vec![route("10.1.0.1")]), "prevResult lacks the route 0.0.0.0/0 by 169.254.1.1"),
    ] {
        let wrong = server.check(request(further, routes)).expect_err("not what ADD gave");
        assert!(wrong.code() == code::ATTACHMENT_BROKEN && wrong.to_string().contains(named), "{named}: {wrong}");
    }
    // An older plugin tells nothing of either.
    server.check(request(None, None)).expect("as it was made");
    assert_eq!(notes.taken(), ["check c1 mtu 1450", "check c1 mtu 1450 net1"]);
    let valid = vec![protocol::ValidAttachment { container_id: "c1".into(), interface: "eth0".into() }];
    server.collect(protocol::CollectRequest { network: "millrace".into(), valid }).expect("collected");
    assert_eq!(notes.taken(), Vec::<String>::new());
    server.delete(delete(Some(&namespace))).expect("detached");
    assert_eq!(notes.taken(), ["delete c1 whole record namespace net1", "delete c1 whole record namespace"]);
    assert!(server.attachments.all().is_empty());

    // One that cannot be made takes the others along.
    *notes.further.lock().expect("whole") = vec!["net1", "bad"];
    assert_eq!(server.add(add(&namespace)).expect_err("refused").code(), code::INVALID_CONFIGURATION);
    assert_eq!(notes.taken()[3..], ["delete c1 whole record namespace net1", "delete c1 whole record namespace"]);
    assert!(server.attachments.all().is_empty());

    // The first was lost while the agent was down: what is left of the pod goes too.
    *notes.further.lock().expect("whole") = vec!["net1"];
    server.add(add(&namespace)).expect("attached");
    let mut first = server.attachments.all().into_iter().find(|record| record.further_to.is_none()).expect("the first");
    first.port = None;
    server.attachments.put(first).expect("written");
    let (server, notes) = place.server();
    assert!(server.release_lost().is_empty());
    assert!(notes.taken().contains(&"delete c1 whole record namespace net1".to_owned()));
    assert!(server.attachments.all().is_empty());
}

#[test]
fn a_missed_delete_and_a_broken_add_are_made_good() {
    let place = Place::new();
    let (server, notes) = place.server();
    server.add(add(&place.namespace("n1"))).expect("attached");
    // The container was restarted with a new namespace while nobody told us.
    server.add(add(&place.namespace("n1"))).expect("attached anew");
    assert_eq!(notes.taken(), ["add c1 web-0", "delete c1 whole record no namespace", "add c1 web-0"]);

    // The same, and the kernel gave the new one the number of the old one.
    fs::rename(place.directory.join("n1"), place.directory.join("n2")).expect("renamed");
    let renamed = place.directory.join("n2").to_str().expect("text").to_owned();
    server.add(add(&renamed)).expect("attached anew");
    assert_eq!(notes.taken(), ["delete c1 whole record no namespace", "add c1 web-0"]);

    // The agent died in ADD: the record is there without a port.
    let mut broken = server.attachments.all().remove(0);
    broken.port = None;
    let namespace = broken.namespace.path.to_str().expect("text").to_owned();
    server.attachments.put(broken).expect("written");
    let (server, notes) = place.server();
    server.add(add(&namespace)).expect("attached anew");
    assert_eq!(notes.taken(), ["delete c1 incomplete record namespace", "add c1 web-0"]);
    assert!(server.attachments.all()[0].port.is_some());
}

#[test]
fn what_was_lost_while_the_agent_was_down_is_released_at_start() {
    let place = Place::new();
    let (server, _) = place.server();
    let container = |id: &str| protocol::AddRequest { container_id: id.into(), ..add(&place.namespace(id)) };
    for id in ["broken", "gone", "living", "replaced"] {
        server.add(container(id)).expect("attached");
        // The network of this test gives the same port to all, which the record refuses.
        let key = AttachmentKey { container_id: id.into(), interface: "eth0".into() };
        let mut record = server.attachments.get(&key).expect("recorded");
        let number = id.len() as u16;
        record.port =
            record.port.filter(|_| id != "broken").map(|port| AttachedPort { index: PortIndex(number), ..port });
        server.attachments.put(record).expect("written");
    }
    fs::remove_file(place.directory.join("gone")).expect("removed");
    place.namespace("replaced");

    let (server, notes) = place.server();
    *notes.refuse.lock().expect("whole") = true;
    assert_eq!(server.release_lost().len(), 3);
    assert_eq!(server.attachments.all().len(), 4, "what could not be taken away stays recorded");
    notes.taken();
    *notes.refuse.lock().expect("whole") = false;
    assert!(server.release_lost().is_empty());
    let expected = [
        "delete broken incomplete record namespace",
        "delete gone whole record no namespace",
        "delete replaced whole record no namespace",
    ];
    assert_eq!(notes.taken(), expected);
    let left: Vec<String> = server.attachments.all().into_iter().map(|record| record.key.container_id).collect();
    assert_eq!(left, ["living"]);
}

#[test]
fn a_refused_add_leaves_no_record_and_a_refused_delete_keeps_it() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    *notes.refuse.lock().expect("whole") = true;
    assert_eq!(server.add(add(&namespace)).expect_err("refused").code(), code::TRY_AGAIN_LATER);
    assert!(server.attachments.all().is_empty());
    *notes.refuse.lock().expect("whole") = false;
    server.add(add(&namespace)).expect("attached");
    *notes.refuse.lock().expect("whole") = true;
    server.delete(delete(None)).expect_err("refused");
    assert_eq!(server.attachments.all().len(), 1);
}

#[test]
fn an_attachment_that_cannot_be_recorded_is_not_made() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    // Nothing can be renamed over a directory that is not empty.
    fs::create_dir_all(place.record().join("in-the-way")).expect("a directory");
    let failure = server.add(add(&namespace)).expect_err("not recorded");
    assert_eq!(failure.code(), code::IO);
    assert!(notes.taken().is_empty() && server.attachments.all().is_empty());
}

#[test]
fn wrong_requests_are_refused_by_name() {
    let place = Place::new();
    let (server, notes) = place.server();
    let mut wrong: BTreeMap<&str, protocol::AddRequest> = BTreeMap::new();
    wrong.insert("CNI_NETNS", add("/nonexistent/namespace"));
    wrong.insert("CNI_CONTAINERID", protocol::AddRequest { container_id: "../x".into(), ..add("/") });
    wrong.insert("CNI_IFNAME", protocol::AddRequest { interface: "a/b".into(), ..add("/") });
    for (name, request) in wrong {
        let failure = server.add(request).expect_err(name);
        assert!(failure.code() == code::INVALID_ENVIRONMENT && failure.to_string().contains(name), "{failure}");
    }
    let own = server.add(add("/proc/self/ns/net")).expect_err("the host's own namespace");
    assert!(own.to_string().contains("CNI_NETNS"), "{own}");
    assert!(notes.taken().is_empty());
}

#[test]
fn an_unusable_record_is_moved_aside_and_reported() {
    let good = r#"{"container_id":"a","interface":"eth0","network":"n","namespace":{"path":"/x","inode":1},
        "port":{"index":1,"mac":"02:00:00:00:00:01","mtu_bytes":1450,"addresses":["10.1.0.5/32"]}}"#;
    let other = good.replace("\"a\"", "\"b\"");
    for (text, reason) in [
        (String::new(), "EOF"),
        ("{\"version\":1,\"attachments\":[".into(), "EOF"),
        ("{\"version\":2,\"attachments\":[]}".into(), "layout version 2"),
        (format!("{{\"version\":1,\"attachments\":[{good},{good}]}}"), "twice"),
        (format!("{{\"version\":1,\"attachments\":[{good},{other}]}}"), "port 1"),
        (format!("{{\"version\":1,\"attachments\":[{}]}}", good.replace("\"index\":1", "\"index\":1024")), "port 1024"),
        (format!("{{\"version\":1,\"attachments\":[{}]}}", good.replace("02:00", "0200")), "MAC"),
    ] {
        let place = Place::new();
        fs::write(place.record(), &text).expect("written");
        let (attachments, problem) = Attachments::load(&place.record()).expect("starts all the same");
        let problem = problem.expect("reported");
        assert!(problem.message.contains(reason), "{text}: {}", problem.message);
        assert!(attachments.all().is_empty() && !place.record().exists());
        let aside = place.directory.join("attachments.json.unusable.1");
        assert_eq!(fs::read_to_string(aside).expect("kept"), text);
    }
    let place = Place::new();
    fs::write(place.record(), format!("{{\"version\":1,\"attachments\":[{good}]}}")).expect("written");
    assert_eq!(place.server().0.attachments.all().len(), 1, "the record the others vary is itself good");
}

#[test]
fn no_cut_of_the_record_is_taken_for_a_record_and_no_two_pods_share_a_port() {
    let place = Place::new();
    let (server, _) = place.server();
    server.add(add(&place.namespace("n1"))).expect("attached");
    let second = protocol::AddRequest { container_id: "c2".into(), ..add(&place.namespace("n2")) };
    assert_eq!(server.add(second).expect_err("port 7 is taken").code(), code::IO);
    assert_eq!(server.attachments.all().len(), 1);
    let whole = fs::read(place.record()).expect("written");
    for end in 0..whole.len() - 1 {
        fs::write(place.record(), &whole[..end]).expect("written");
        let (attachments, problem) = Attachments::load(&place.record()).expect("starts all the same");
        // Only the closing line feed may be missing.
        assert_eq!((attachments.all().len(), problem.is_some()), (0, true), "cut at {end}");
    }
}

#[test]
fn check_compares_the_result_of_add_with_the_record_before_it_asks_the_network() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    let request = |mac: &str, addresses: &[&str]| protocol::CheckRequest {
        network: "millrace".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        network_namespace: namespace.clone(),
        mac: Some(mac.into()),
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        mtu_bytes: None,
        further: None,
        routes: None,
    };
    let right = || request("02:00:00:00:00:07", &["10.1.0.5"]);
    assert_eq!(server.check(right()).expect_err("not attached").code(), code::UNKNOWN_CONTAINER);
    server.add(add(&namespace)).expect("attached");
    server.check(right()).expect("as it should be");
    assert_eq!(notes.taken(), ["add c1 web-0", "check c1 mtu 1450"]);
    let wrong = server.check(request("02:00:00:00:00:08", &["10.1.0.9"])).expect_err("not what ADD gave");
    assert_eq!(wrong.code(), code::ATTACHMENT_BROKEN);
    assert!(wrong.to_string().contains("02:00:00:00:00:08") && wrong.to_string().contains("10.1.0.5"), "{wrong}");
    // A later plugin may have added addresses and lowered the MTU; it cannot have raised it.
    for (given, expected) in [(1400, 1400), (9000, 1450)] {
        let more = request("02:00:00:00:00:07", &["10.1.0.9", "10.1.0.5"]);
        server.check(protocol::CheckRequest { mtu_bytes: Some(given), ..more }).expect("as a chain may leave it");
        assert_eq!(notes.taken(), [format!("check c1 mtu {expected}")]);
    }
    place.namespace("n1");
    let moved = server.check(right()).expect_err("another namespace at the path");
    assert!(moved.to_string().contains("network namespace"), "{moved}");
    assert!(notes.taken().is_empty());
}

#[test]
fn collection_takes_what_the_runtime_does_not_know_of_its_network_only() {
    let place = Place::new();
    let (server, notes) = place.server();
    for (number, id) in (1..).zip(["kept", "lost", "stuck", "foreign"]) {
        let network = if id == "foreign" { "another" } else { "millrace" };
        let request = add(&place.namespace(id));
        server
            .add(protocol::AddRequest { container_id: id.into(), network: network.into(), ..request })
            .expect("attached");
        let key = AttachmentKey { container_id: id.into(), interface: "eth0".into() };
        let mut record = server.attachments.get(&key).expect("recorded");
        record.port = record.port.map(|port| AttachedPort { index: PortIndex(number), ..port });
        server.attachments.put(record).expect("written");
    }
    notes.taken();
    let request = |valid: &[&str]| protocol::CollectRequest {
        network: "millrace".into(),
        valid: valid
            .iter()
            .map(|id| protocol::ValidAttachment { container_id: (*id).into(), interface: "eth0".into() })
            .collect(),
    };
    // Addresses whose holder nobody has recorded go back, too.
    *notes.holders.lock().expect("whole") = ["kept", "foreign", "nobody"].map(key).to_vec();
    server.collect(request(&["kept", "stuck", "never seen"])).expect("collected");
    assert_eq!(notes.taken(), ["delete lost whole record namespace"]);
    assert_eq!(std::mem::take(&mut *notes.released.lock().expect("whole")), ["lost", "nobody"]);
    *notes.refuse.lock().expect("whole") = true;
    let failure = server.collect(request(&["kept"])).expect_err("one could not be taken away");
    assert!(failure.to_failure().details.contains("stuck"), "{failure:?}");
    assert_eq!(*notes.released.lock().expect("whole"), ["nobody"], "it goes on");
}

#[test]
fn a_delete_that_found_no_agent_is_made_good_at_start_or_before_the_next_add() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let with_pending = || {
        let (server, notes) = place.server();
        (server.with_state_directory(place.directory.clone()), notes)
    };
    let (server, _) = with_pending();
    server.add(add(&namespace)).expect("attached");
    pending::leave(&place.directory, &delete(Some(&namespace))).expect("left");
    pending::leave(&place.directory, &delete(Some(&namespace))).expect("left again: the same file");
    let (server, notes) = with_pending();
    *notes.refuse.lock().expect("whole") = true;
    assert_eq!(server.take_up_pending().len(), 1);
    *notes.refuse.lock().expect("whole") = false;
    notes.taken();
    assert!(server.take_up_pending().is_empty() && server.attachments.all().is_empty());
    assert_eq!(notes.taken(), ["delete c1 whole record namespace"]);
    assert!(server.take_up_pending().is_empty() && notes.taken().is_empty(), "once");

    // The runtime uses the name again at once: the old request must not take the new attachment away.
    server.add(add(&namespace)).expect("attached");
    pending::leave(&place.directory, &delete(Some(&namespace))).expect("left");
    notes.taken();
    server.add(add(&namespace)).expect("attached anew");
    assert_eq!(notes.taken(), ["delete c1 whole record namespace", "add c1 web-0"]);
    assert!(server.take_up_pending().is_empty());
    assert_eq!((server.attachments.all().len(), notes.taken().len()), (1, 0));
    // What nobody can read is told and does no harm.
    std::fs::write(pending::directory(&place.directory).join("x@y.json"), "{").expect("written");
    assert_eq!(server.take_up_pending().len(), 1);
}

#[test]
fn addresses_go_back_when_no_record_has_them_any_more() {
    let place = Place::new();
    let namespace = place.namespace("n1");
    let (server, notes) = place.server();
    server.add(add(&namespace)).expect("attached");
    // As on a full disk, nothing can be recorded: the next start finds the addresses in the old record.
    fs::remove_file(place.record()).expect("removed");
    fs::create_dir_all(place.record().join("in-the-way")).expect("a directory");
    assert_eq!(server.delete(delete(None)).expect_err("not recorded").code(), code::IO);
    assert!(notes.released.lock().expect("whole").is_empty(), "others would get them, too");
    assert!(!place.directory.join("attachments.json.new").exists(), "it would keep room from others");
    fs::remove_dir_all(place.record()).expect("removed");
    server.delete(delete(None)).expect("detached");
    assert_eq!(*notes.released.lock().expect("whole"), ["c1"]);
}
