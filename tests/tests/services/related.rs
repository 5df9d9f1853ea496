//! ICMP and ICMPv6 errors follow the connection they are about: the receiver finds its own packet quoted, from the
//! address it knows.

use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::frame;
use millrace_tests::objects;
use millrace_tests::service_world::{Delivered, Protocol, ServiceWorld, ends, pod_address};
use serde_json::{Value, json};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn vip(ipv4: bool) -> (IpAddr, u16) {
    (if ipv4 { "10.96.0.1" } else { "fd00:96::1" }.parse().expect("address"), 80)
}

fn world(endpoint: (&str, &str)) -> ServiceWorld {
    let mut world = ServiceWorld::new();
    let ports = |port: u16| {
        json!(["TCP", "UDP", "SCTP"].map(|name| json!({"name": name.to_lowercase(), "port": port, "protocol": name})))
    };
    let both = [true, false].map(|ipv4| vip(ipv4).0.to_string());
    world.apply(&objects::service("web", &[&both[0], &both[1]], json!({"ports": ports(80)})));
    for ipv4 in [true, false] {
        let address = pod_address(endpoint.0, ipv4).to_string();
        let mut slice = objects::slice("web", ipv4, &[(&address, endpoint.1, Value::Null)]);
        slice["ports"] = ports(8080);
        world.apply(&slice);
    }
    world
}

/// The error of the pod that got a packet: nobody listens on that port.
fn refusal(got: &Delivered, ipv4: bool) -> WireFrame {
    let ((source, _), (destination, _)) = ends(&got.text);
    let code = if ipv4 { 3 } else { 4 };
    frame().from(got.receiver, destination).to(GATEWAY_MAC, source).unreachable(code, &got.frame.bytes).wire()
}

/// The packet that an error quotes, from its layer-4 header on, as far as `whole` reaches.
fn quoted_segment(error: &WireFrame, ipv4: bool) -> Vec<u8> {
    let header = if ipv4 { 20 } else { 40 };
    error.bytes[14 + header + 8 + header..].to_vec()
}

fn segment(packet: &WireFrame, ipv4: bool) -> Vec<u8> {
    packet.bytes[14 + if ipv4 { 20 } else { 40 }..].to_vec()
}

fn starts_alike(quoted: &[u8], sent: &[u8], protocol: Protocol) {
    // A quoted CRC32c is nobody's to look at: it covers what a quote may leave out.
    let compared = if protocol == Protocol::Sctp { 8 } else { quoted.len() };
    assert_eq!(quoted[..compared], sent[..compared], "{protocol:?}");
}

#[test]
fn an_error_of_the_endpoint_is_one_of_the_service() {
    let cases =
        [("client", ("local", "a")), ("client", ("remote", "b")), ("local", ("local", "a")), ("host", ("remote", "b"))];
    for (client, endpoint) in cases {
        let mut world = world(endpoint);
        for protocol in PROTOCOLS {
            for ipv4 in [true, false] {
                let sent = world.opening(client, 7_000, vip(ipv4), protocol);
                let got = world.send(client, sent.clone()).remove(0);
                let back = world.send(endpoint.0, refusal(&got, ipv4));
                assert_eq!(back.len(), 1, "{client} {endpoint:?} {protocol:?} {ipv4}");
                let (from, called) = ((pod_address(client, ipv4), 7_000), vip(ipv4));
                let name = if ipv4 { "icmp port unreachable" } else { "icmpv6 port unreachable" };
                assert!(back[0].text.starts_with(&format!("{name} {} > {} | ", called.0, from.0)), "{}", back[0].text);
                let (_, quote) = back[0].text.split_once(" | ").expect("a quote");
                assert_eq!((back[0].pod.as_str(), ends(quote)), (client, (from, called)), "{}", back[0].text);
                starts_alike(&quoted_segment(&back[0].frame, ipv4), &segment(&sent, ipv4), protocol);
            }
        }
    }
}

/// And an error about the answer finds the endpoint.
#[test]
fn an_error_of_the_client_reaches_the_endpoint() {
    for (client, endpoint) in [("client", ("local", "a")), ("client", ("remote", "b")), ("local", ("local", "a"))] {
        let mut world = world(endpoint);
        for ipv4 in [true, false] {
            let sent = world.opening(client, 7_000, vip(ipv4), Protocol::Udp);
            let got = world.send(client, sent).remove(0);
            let answer = world.answer(&got, Protocol::Udp);
            let answered = world.send(endpoint.0, answer.clone()).remove(0);
            let back = world.send(client, refusal(&answered, ipv4));
            assert_eq!(back.len(), 1, "{client} {endpoint:?} {ipv4}");
            let (_, quote) = back[0].text.split_once(" | ").expect("a quote");
            let (seen, own) = ends(&got.text);
            assert_eq!((back[0].pod.as_str(), ends(quote)), (endpoint.0, (own, seen)), "{}", back[0].text);
            starts_alike(&quoted_segment(&back[0].frame, ipv4), &segment(&answer, ipv4), Protocol::Udp);
        }
    }
}

/// A quote that names no connection is forwarded as it is.
#[test]
fn an_error_about_nothing_that_is_known_is_left_as_it_is() {
    let mut world = world(("local", "a"));
    let never_sent = world.opening("client", 9, (pod_address("second", true), 53), Protocol::Udp);
    let from = (world.mac("second"), pod_address("second", true));
    let error = frame().from(from.0, from.1).to(GATEWAY_MAC, pod_address("client", true));
    let error = error.unreachable(3, &never_sent.bytes).wire();
    let trail = world.explain("second", &error);
    assert!(!trail.contains("connection"), "{trail}");
    let back = world.send("second", error.clone()).remove(0);
    assert_eq!(quoted_segment(&back.frame, true), quoted_segment(&error, true));
}
