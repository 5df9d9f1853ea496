//! Real TAPs, namespaces and netlink: pods talk, TAPs survive their agent, flows keep their queue, and the kernel's
//! own links do what they are told. Needs root.

#[path = "../../engine/tests/support/root_tests.rs"]
#[macro_use]
mod root_tests;
mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ipnet::Ipv4Net;
use millrace_control::kernel::{KernelError, Link, LinkChange, Namespace, Netlink};
use millrace_engine::limits;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::tap::{TapDevice, TapError};
use support::Pod;
use support::forwarder::Forwarder;

const TIMEOUT: Duration = Duration::from_secs(5);

fn udp(pod: &Pod, address: IpAddr) -> UdpSocket {
    let socket = pod.inside(|| UdpSocket::bind((address, 0))).expect("socket");
    socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
    socket
}

fn ping_pong(pods: &[Pod; 2], version: usize, rounds: u32) {
    let [client, server] = [0, 1].map(|pod| udp(&pods[pod], pods[pod].addresses[version]));
    let target = server.local_addr().expect("address");
    for round in 0..rounds {
        let mut buffer = [0; 64];
        client.send_to(&round.to_be_bytes(), target).expect("request");
        let (length, from) = server.recv_from(&mut buffer).expect("request arrives");
        server.send_to(&buffer[..length], from).expect("reply");
        let (length, _) = client.recv_from(&mut buffer).expect("reply arrives");
        assert_eq!(buffer[..length], round.to_be_bytes());
    }
}

/// Sends `bytes` bytes from the first pod to the second and compares what arrives.
fn tcp_stream(pods: &[Pod; 2], version: usize, bytes: usize) {
    let address = pods[1].addresses[version];
    let listener = pods[1].inside(|| TcpListener::bind((address, 0))).expect("listener");
    let target: SocketAddr = listener.local_addr().expect("address");
    let mut client = pods[0].inside(|| TcpStream::connect_timeout(&target, TIMEOUT)).expect("connection");
    let (mut server, _) = listener.accept().expect("accepted");
    server.set_read_timeout(Some(TIMEOUT)).expect("timeout");
    let data: Vec<u8> = (0..bytes).map(|number| (number % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&data).expect("sent");
            client.shutdown(std::net::Shutdown::Write).expect("shut down");
        });
        let mut received = Vec::with_capacity(bytes);
        server.read_to_end(&mut received).expect("received");
        assert!(received == data, "{} of {} bytes, or changed ones", received.len(), data.len());
    });
}

fn two_pods(queues: usize) -> ([Pod; 2], [TapDevice; 2]) {
    let (first, first_device) = Pod::create(1, queues);
    let (second, second_device) = Pod::create(2, queues);
    ([first, second], [first_device, second_device])
}

fn forward(pods: &[Pod; 2], devices: [TapDevice; 2]) -> Forwarder {
    Forwarder::start(devices, [pods[0].mac, pods[1].mac], None)
}

fn eth0(pod: &Pod) -> Link {
    Netlink::open_in(pod.handle()).expect("netlink").existing_link("eth0").expect("eth0")
}

fn pods_talk_over_both_ip_versions_in_whole_units() {
    let (pods, devices) = two_pods(1);
    let path = pods[0].handle().path().to_owned();
    let forwarder = forward(&pods, devices);
    for version in 0..2 {
        ping_pong(&pods, version, 50);
        tcp_stream(&pods, version, 8 << 20);
    }
    let crossed = forwarder.stop();
    assert!(crossed.units[0] > 0 && crossed.units[1] > 0, "units {:?}", crossed.units);
    assert!(crossed.partial > 0);
    assert!(crossed.longest > 20_000, "longest {}", crossed.longest);
    assert!(crossed.longest <= limits::POD_GSO_BYTES as usize + 14, "longest {}", crossed.longest);
    drop(pods);
    assert!(!path.exists(), "{} is left behind", path.display());
}

fn a_tap_survives_its_agent_and_is_taken_up_again() {
    let (pods, devices) = two_pods(2);
    let forwarder = forward(&pods, devices);
    ping_pong(&pods, 0, 3);
    let before = eth0(&pods[0]);
    assert!(before.carrier && before.kind.as_deref() == Some("tun"), "{before:?}");
    forwarder.stop();

    // The agent is dead: no carrier, but device, addresses and routes are there.
    let without = eth0(&pods[0]);
    assert_eq!(Link { carrier: true, operational: true, ..without.clone() }, before);
    assert!(!without.carrier);
    let mut netlink = Netlink::open_in(pods[0].handle()).expect("netlink");
    let addresses = netlink.addresses("eth0").expect("addresses");
    assert!(pods[0].addresses.iter().all(|address| addresses.contains(&(*address).into())), "{addresses:?}");
    assert_eq!(netlink.own_routes().expect("routes").len(), 4);

    let taken = TapDevice::create_in_namespace(pods[0].handle(), "eth0", 2);
    assert!(matches!(taken, Err(TapError::Exists(_))), "{taken:?}");
    let wrong = NamespaceHandle::recorded(pods[0].handle().path(), pods[0].handle().inode() + 1);
    assert!(matches!(TapDevice::attach_in_namespace(&wrong, "eth0", 2), Err(TapError::Namespace { .. })));
    assert!(matches!(TapDevice::attach_in_namespace(pods[0].handle(), "eth1", 2), Err(TapError::Absent(_))));

    let devices = [0, 1].map(|pod| TapDevice::attach_in_namespace(pods[pod].handle(), "eth0", 2).expect("attached"));
    assert_eq!(devices[0].index(), before.index);
    let forwarder = forward(&pods, devices);
    for version in 0..2 {
        ping_pong(&pods, version, 3);
        tcp_stream(&pods, version, 1 << 20);
    }
    assert!(forwarder.stop().longest > 1514);
    assert_eq!(Link { carrier: true, operational: true, ..eth0(&pods[0]) }, before);
    pods[0].configure(); // setting it up again is allowed and harmless
}

fn removing_takes_the_device_at_once_or_with_its_last_queue() {
    let (pod, device) = Pod::create(1, 2);
    let exists = || TapDevice::exists(pod.handle(), "eth0").expect("asked").is_some();
    assert!(TapDevice::remove_in_namespace(pod.handle(), "eth0").expect("removed"));
    assert!(exists(), "a queue is still open");
    drop(device);
    assert!(!exists());
    assert!(!TapDevice::remove_in_namespace(pod.handle(), "eth0").expect("nothing to remove"));
    // Somebody else's interface of the name stays.
    let mut netlink = Netlink::open_in(pod.handle()).expect("netlink");
    netlink.create_veth(("eth0", None), ("eth9", None)).expect("veth");
    assert!(!TapDevice::remove_in_namespace(pod.handle(), "eth0").expect("not ours"));
    assert!(exists() && netlink.delete_link("eth0").expect("deleted"));

    let again = TapDevice::open_in_namespace(pod.handle(), "eth0", 1).expect("made again");
    again.remove().expect("removed");
    assert!(!exists());

    let refused = TapDevice::open_in_namespace(pod.handle(), "lo", 1);
    assert!(matches!(refused, Err(TapError::System { .. })), "{refused:?}");
}

fn both_directions_of_a_flow_meet_one_queue_and_flows_spread() {
    let (pods, devices) = two_pods(2);
    let forwarder = forward(&pods, devices);
    for _ in 0..40 {
        ping_pong(&pods, 0, 3);
    }
    let crossed = forwarder.stop();
    assert_eq!(crossed.queues.len(), 40);
    let mut flows_of = [0; 2];
    for (flow, sides) in &crossed.queues {
        assert_eq!([sides[0].len(), sides[1].len()], [3, 3], "{flow:?}");
        let queue = sides[0][0];
        assert!(sides.iter().flatten().all(|other| *other == queue), "flow {flow:?} moved: {sides:?}");
        flows_of[queue] += 1;
    }
    assert!(flows_of.iter().all(|flows| *flows >= 8), "{flows_of:?}");
}

fn what_a_full_ring_loses_is_counted_by_the_pods_link() {
    let (pod, device) = Pod::create(1, 1);
    let statistics = || Netlink::open_in(pod.handle()).and_then(|mut netlink| netlink.link_statistics("eth0"));
    assert_eq!(statistics().expect("statistics").transmit_dropped, 0);
    let socket = udp(&pod, pod.addresses[0]);
    for _ in 0..2000 {
        socket.send_to(b"nobody reads", (Ipv4Addr::new(10, 1, 0, 9), 9)).expect("sent");
    }
    let after = statistics().expect("statistics");
    assert!(after.transmit_dropped >= 900 && after.transmit_dropped <= 1100, "{after:?}");
    drop(device);
}

fn errors_name_what_was_attempted() {
    let (pod, _device) = Pod::create(1, 1);
    let mut netlink = Netlink::open_in(pod.handle()).expect("netlink");
    let absent = netlink.add_address("eth7", IpAddr::V4(Ipv4Addr::LOCALHOST).into()).expect_err("no such link");
    assert_eq!(absent.to_string(), "there is no network interface eth7");
    let refused = netlink.create_veth(("eth0", None), ("eth8", None)).expect_err("name is taken");
    assert!(refused.is_present(), "{refused}");
    assert!(refused.to_string().starts_with("cannot create veth pair eth0 and eth8: File exists"), "{refused}");
    assert!(matches!(refused, KernelError::Refused { .. }));
    assert!(!netlink.delete_link("eth7").expect("nothing to delete"));
}

/// How fast two TAPs are behind one thread; for a release build on a quiet machine, so not part of a normal run:
/// `cargo test --release -p millrace-control --test kernel -- --ignored --nocapture throughput`.
fn throughput_between_two_taps() {
    support::forwarder::pin(0); // and with it every thread that is started here
    let (pods, devices) = two_pods(1);
    let forwarder = Forwarder::start(devices, [pods[0].mac, pods[1].mac], Some(1));
    let ends = |version: usize| [0, 1].map(|pod| (pods[pod].handle(), pods[pod].addresses[version]));
    for version in 0..2 {
        for _ in 0..3 {
            let gigabits = measure::tcp_gigabits(ends(version), Duration::from_secs(1));
            println!("tcp over IPv{} {gigabits:.1} Gbit/s", [4, 6][version]);
            assert!(gigabits > 1.0, "units do not stay whole");
        }
    }
    for _ in 0..3 {
        let (sent, received) = measure::small_packets(ends(0), Duration::from_secs(1));
        println!("60-byte frames: sent {sent:.0} k/s, received {received:.0} k/s");
        assert!(received > 10.0);
    }
    let (median, worst) = measure::round_trips(ends(0), 5000);
    println!("round trip: median {median:.1} us, p99 {worst:.1} us");
    let crossed = forwarder.stop();
    println!("longest unit {} bytes, {} packets", crossed.longest, crossed.packets);
    drop(pods);
    let nodes = [(); 2].map(|()| Namespace::create_anonymous().expect("namespace"));
    let mut netlinks = [0, 1].map(|node| Netlink::open_in(nodes[node].handle()).expect("netlink"));
    netlinks[0].create_veth(("up0", None), ("up0", Some(nodes[1].handle()))).expect("veth");
    for (number, netlink) in netlinks.iter_mut().enumerate() {
        netlink.change_link("up0", &LinkChange::up()).expect("up");
        let address = Ipv4Addr::new(192, 0, 2, number as u8 + 1);
        netlink.add_address("up0", Ipv4Net::new_assert(address, 24).into()).expect("address");
    }
    let ends = [0, 1].map(|node| (nodes[node].handle(), Ipv4Addr::new(192, 0, 2, node as u8 + 1).into()));
    let gigabits = measure::tcp_gigabits(ends, Duration::from_secs(1));
    let (_, small) = measure::small_packets(ends, Duration::from_secs(1));
    let (median, _) = measure::round_trips(ends, 5000);
    println!("for comparison, one veth pair and no switch: {gigabits:.1} Gbit/s, {small:.0} k/s, {median:.1} us");
    println!(
        "the forwarder had its core {:.0} % of the time; below 85 the figures mean little",
        crossed.on_core * 100.0
    );
}

mod measure {
    use std::time::Instant;

    use super::*;

    /// A namespace and the address to use in it.
    pub(super) type End<'a> = (&'a NamespaceHandle, IpAddr);

    fn socket((namespace, address): End<'_>) -> UdpSocket {
        let socket = namespace.enter(|| UdpSocket::bind((address, 0))).expect("entered").expect("socket");
        socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        socket
    }

    pub(super) fn tcp_gigabits(ends: [End<'_>; 2], time: Duration) -> f64 {
        let [(near, _), (far, address)] = ends;
        let listener = far.enter(|| TcpListener::bind((address, 0))).expect("entered").expect("listener");
        let target = listener.local_addr().expect("address");
        let connect = || TcpStream::connect_timeout(&target, TIMEOUT);
        let mut client = near.enter(connect).expect("entered").expect("connection");
        let (mut server, _) = listener.accept().expect("accepted");
        let start = Instant::now();
        let received = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
                while let Ok(length @ 1..) = server.read(&mut buffer) {
                    total += length;
                }
                total
            });
            let data = vec![0x5a; 1 << 18];
            while start.elapsed() < time {
                client.write_all(&data).expect("sent");
            }
            drop(client);
            reader.join().expect("reader")
        });
        received as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    }

    pub(super) fn small_packets(ends: [End<'_>; 2], time: Duration) -> (f64, f64) {
        let [client, server] = ends.map(socket);
        client.connect(server.local_addr().expect("address")).expect("connected");
        server.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let start = Instant::now();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut buffer, mut count) = ([0; 64], 0u64);
                while server.recv(&mut buffer).is_ok() {
                    count += 1;
                }
                count
            });
            let mut sent = 0u64;
            while start.elapsed() < time {
                for _ in 0..64 {
                    sent += u64::from(client.send(&[0; 18]).is_ok());
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            (sent as f64 / seconds / 1e3, reader.join().expect("reader") as f64 / seconds / 1e3)
        })
    }

    pub(super) fn round_trips(ends: [End<'_>; 2], rounds: usize) -> (f64, f64) {
        let [client, server] = ends.map(socket);
        client.connect(server.local_addr().expect("address")).expect("connected");
        server.connect(client.local_addr().expect("address")).expect("connected");
        let mut times: Vec<f64> = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 32];
                for _ in 0..rounds {
                    let length = server.recv(&mut buffer).expect("request");
                    server.send(&buffer[..length]).expect("reply");
                }
            });
            let mut buffer = [0; 32];
            (0..rounds)
                .map(|_| {
                    let start = Instant::now();
                    client.send(&[1; 18]).expect("request");
                    client.recv(&mut buffer).expect("reply");
                    start.elapsed().as_secs_f64() * 1e6
                })
                .collect()
        });
        times.sort_by(f64::total_cmp);
        (times[rounds / 2], times[rounds * 99 / 100])
    }
}

root_tests! {
    every run [
        pods_talk_over_both_ip_versions_in_whole_units,
        a_tap_survives_its_agent_and_is_taken_up_again,
        removing_takes_the_device_at_once_or_with_its_last_queue,
        both_directions_of_a_flow_meet_one_queue_and_flows_spread,
        what_a_full_ring_loses_is_counted_by_the_pods_link,
        errors_name_what_was_attempted,
    ],
    on demand [
        throughput_between_two_taps,
    ],
}
