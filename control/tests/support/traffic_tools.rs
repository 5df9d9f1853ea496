//! The tools on a veth pair between two namespaces of the test, without any switch.

use std::time::Duration;

use millrace_control::demo::interruption::Interruption;
use millrace_control::demo::traffic::{Endpoint, Family, exchange, ping, request_response, stream};
use millrace_control::kernel::{LinkChange, Namespace, Netlink, sysctl};

/// Two connected endpoints, and what they live in.
fn pair() -> ([Endpoint; 2], [Namespace; 2]) {
    let namespaces = [(); 2].map(|()| Namespace::create_anonymous().expect("namespace"));
    let mut netlink = Netlink::open_in(namespaces[0].handle()).expect("netlink");
    netlink.create_veth(("eth0", None), ("eth0", Some(namespaces[1].handle()))).expect("veth");
    let mut endpoints = Vec::new();
    for (number, namespace) in namespaces.iter().enumerate() {
        let mut netlink = Netlink::open_in(namespace.handle()).expect("netlink");
        sysctl::write(namespace.handle(), &[("ipv6/conf/eth0/accept_dad".to_owned(), "0")], true).expect("setting");
        netlink.change_link("eth0", &LinkChange::up()).expect("up");
        let addresses = [format!("192.0.2.{}", number + 1), format!("2001:db8::{}", number + 1)];
        for (address, length) in addresses.iter().zip([24, 64]) {
            netlink.add_address("eth0", format!("{address}/{length}").parse().expect("prefix")).expect("address");
        }
        endpoints.push(Endpoint {
            name: format!("end {number}"),
            namespace: namespace.handle().clone(),
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
        });
    }
    let endpoints: [Endpoint; 2] = endpoints.try_into().expect("two");
    (endpoints, namespaces)
}

pub(crate) fn every_tool_works_over_both_families() {
    let ([one, other], _namespaces) = pair();
    let going_on = Interruption::default();
    for family in Family::BOTH {
        let target = other.address(family).expect("address");
        let mut pinger = ping::Pinger::open(&one, target).expect("pinger");
        // The kernel may take a second to let packets out of a new link.
        let time = (0..5).find_map(|_| pinger.once(Duration::from_secs(1)).expect("ping"));
        assert!(time.is_some(), "{family:?}: no answer to five requests");
        exchange::tcp(&one, &other, family).expect("TCP exchange");
        exchange::udp(&one, &other, family).expect("UDP exchange");
        let short = Duration::from_millis(200);
        let result = stream::stream(&one, &other, family, short, &going_on).expect("stream");
        assert!(result.bytes > 0 && result.segments > 0 && result.seconds > 0.1, "{result:?}");
        let times = request_response::request_response(&one, &other, family, short, &going_on).expect("requests");
        assert!(times.transactions > 100 && times.p50_microseconds <= times.p99_microseconds, "{times:?}");
    }
}

pub(crate) fn an_address_nobody_has_is_not_reached() {
    let ([one, _], _namespaces) = pair();
    for absent in ["192.0.2.77", "2001:db8::77", "203.0.113.1"] {
        // Without a route even opening fails; both are a no.
        let Ok(mut pinger) = ping::Pinger::open(&one, absent.parse().expect("address")) else { continue };
        assert_eq!(pinger.once(Duration::from_millis(200)).expect("ping"), None, "{absent}");
    }
}
