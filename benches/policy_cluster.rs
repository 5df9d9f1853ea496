//! A cluster with many policies: 1,000 pods here and 100,000 elsewhere in 100 namespaces, every pod with one of 100
//! labels `app`. Each policy selects one `app` of one namespace and lets the next `app` in; so 10,000 policies select
//! each pod once.

use std::net::IpAddr;

use millrace_control::cluster::{InterfaceName, NodeName, PodName};
use millrace_control::observe::Observed;
use millrace_control::plan::{AttachedPod, LocalView};
use millrace_control::store::{Event, Located, Object};
use millrace_engine::packet::{Mac, PortIndex};
use serde_json::{Value, json};

/// How many pods there are.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) local: usize,
    pub(crate) remote: usize,
    /// Pods have an IPv6 address too.
    pub(crate) dual_stack: bool,
}

impl Size {
    /// What the figures are of; without `--bench` this is a test run, and small.
    pub(crate) fn asked() -> Self {
        match std::env::args().any(|argument| argument == "--bench") {
            true => Size { local: 1_000, remote: 100_000, dual_stack: false },
            false => Size { local: 400, remote: 800, dual_stack: false },
        }
    }

    pub(crate) fn pods(self) -> usize {
        self.local + self.remote
    }

    fn addresses(self, number: usize) -> Vec<IpAddr> {
        [address(number), address_v6(number)].into_iter().take(1 + usize::from(self.dual_stack)).collect()
    }
}

const NAMESPACES: usize = 100;
const APPS: usize = 100;

/// Pods whose numbers differ by this much are alike.
pub(crate) const ALIKE: usize = NAMESPACES * APPS;

/// Distance in numbers from a pod to the one of these that its policy lets in.
pub(crate) const fn let_in(number: usize) -> usize {
    NAMESPACES + number * ALIKE
}

pub(crate) fn take(observed: &mut Observed, object: &Value) {
    observed.take(Event::Applied(Object::read(Located::from(object), None).expect("object")));
}

pub(crate) fn address(number: usize) -> IpAddr {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    IpAddr::from([10, high, middle, low])
}

pub(crate) fn address_v6(number: usize) -> IpAddr {
    let [high, low] = [(number >> 16) as u16, number as u16];
    IpAddr::from([0xfd00, 10, 0, 0, 0, 0, high, low])
}

fn names(number: usize) -> (String, String) {
    (format!("n{}", number % NAMESPACES), format!("p{number}"))
}

pub(crate) fn pod(size: Size, number: usize, app: usize) -> Value {
    let (namespace, name) = names(number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": format!("a{app}"), "number": format!("x{number}")}},
        "spec": {"nodeName": if number < size.local { "a" } else { "b" }},
        "status": {"phase": "Running", "podIPs": size.addresses(number).iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()},
    })
}

pub(crate) fn app_of(number: usize) -> usize {
    number / NAMESPACES % APPS
}

pub(crate) fn policy(number: usize) -> Value {
    let (namespace, app) = (number % NAMESPACES, number / NAMESPACES % APPS);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy-{number}"), "namespace": format!("n{namespace}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("a{app}")}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": format!("a{}", (app + 1) % APPS)}}}],
                "ports": [{"port": 80}, {"protocol": "UDP", "port": 1024, "endPort": 65535}],
            }],
        },
    })
}

/// The view of node `a` with these pods plugged in, each at a port.
pub(crate) fn local(size: Size, pods: impl IntoIterator<Item = (PortIndex, usize)>) -> LocalView {
    let mut local = LocalView::new(NodeName::new("a").expect("name"));
    let attached = pods.into_iter().map(|(port, number)| {
        let (namespace, name) = names(number);
        let pod = AttachedPod {
            host_ports: Vec::new(),
            bandwidth: Default::default(),
            uid: None,
            pod: PodName::new(&namespace, &name).expect("name"),
            container_id: name,
            interface: InterfaceName::new("eth0").expect("interface"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: size.addresses(number),
            network: None,
            further: false,
            mtu: 1450,
        };
        (port, pod)
    });
    local.pods = attached.collect();
    local
}

/// The cluster with so many policies.
pub(crate) fn cluster(size: Size, policies: usize) -> Observed {
    let mut observed = Observed::default();
    for number in 0..size.pods() {
        take(&mut observed, &pod(size, number, app_of(number)));
    }
    (0..policies).for_each(|number| take(&mut observed, &policy(number)));
    assert_eq!(observed.problems(), []);
    observed
}
