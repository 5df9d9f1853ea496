//! Connections with sockets at both ends, while their node's agent ends and the next one starts: they go on where they were.
//!
//! Each asks and is answered at a fixed pace over one TCP connection, through what a restart could break: a choice of
//! endpoint, a masquerade port, a node port. Printed are the longest waits for an answer, which is the time without
//! forwarding and what TCP adds to it before it sends again.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::agent_process::{Agent, AgentOptions};
use crate::boundary::Outside;
use crate::cluster::{Cluster, Underlay};
use crate::host::{host, node};
use crate::pod::Pod;
use crate::services::{OPTIONS, PORT, service_at};
use crate::traffic::Endpoint;

/// Connections of each sort: that a choice made anew meets the former one each time happens once in 2^16.
const EACH: usize = 16;
const PACE: Duration = Duration::from_millis(2);
/// How long they run before and after the event.
const AROUND: Duration = Duration::from_secs(1);
/// Longest wait for an answer; TCP sends again after 0.2, 0.6, 1.4, 3 s.
const PATIENCE: Duration = Duration::from_secs(10);
const OPENING: Duration = Duration::from_secs(20);

fn cluster_ip(ipv4: bool) -> IpAddr {
    if ipv4 { "10.96.0.7" } else { "fd00:96::7" }.parse().expect("address")
}

fn balancer(ipv4: bool) -> IpAddr {
    if ipv4 { "203.0.113.7" } else { "2001:db8:9::7" }.parse().expect("address")
}

/// Answers every byte of every connection with the same, until told to stop.
pub(crate) fn answer(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("set");
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut client, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            scope.spawn(move || {
                client.set_nonblocking(false).expect("set");
                client.set_nodelay(true).expect("set");
                // The last packet of a connection may be lost with an agent: then nobody says that it ended.
                client.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
                let mut byte = [0];
                while !stop.load(Ordering::Relaxed) {
                    match client.read(&mut byte) {
                        Ok(1) if client.write_all(&byte).is_ok() => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        _ => return,
                    }
                }
            });
        }
    });
}

/// What a connection is, and the longest wait for an answer or how it ended.
pub(crate) type Outcome = (&'static str, Result<Duration, String>);

/// One connection that is used.
pub(crate) struct Conversation {
    pub(crate) what: &'static str,
    socket: TcpStream,
}

impl Conversation {
    pub(crate) fn open(what: &'static str, from: &Endpoint, to: SocketAddr) -> Self {
        let end = Instant::now() + OPENING;
        loop {
            let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
            match from.namespace.enter(connect).expect("entered") {
                Ok(socket) => {
                    socket.set_nodelay(true).expect("set");
                    socket.set_read_timeout(Some(PATIENCE)).expect("set");
                    return Self { what, socket };
                }
                Err(error) => assert!(Instant::now() < end, "{what} {to}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks once; how long the answer took, or how it ended.
    pub(crate) fn ask(&mut self) -> Result<Duration, String> {
        let asked = Instant::now();
        let exchanged = self.socket.write_all(b"?").and_then(|()| self.socket.read_exact(&mut [0]));
        exchanged.map_err(|error| format!("{}: {error} after {:?}", self.what, asked.elapsed()))?;
        Ok(asked.elapsed())
    }

    /// Asks at its pace; the longest wait, or how it ended.
    fn hold(&mut self, stop: &AtomicBool) -> Result<Duration, String> {
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            longest = longest.max(self.ask()?);
            std::thread::sleep(PACE);
        }
        Ok(longest)
    }
}

/// Whatever happens, each conversation is held meanwhile; what became of each.
pub(crate) fn while_held<T>(conversations: &mut [Conversation], event: impl FnOnce() -> T) -> (T, Vec<Outcome>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let held: Vec<_> =
            conversations.iter_mut().map(|one| (one.what, scope.spawn(move || one.hold(stop)))).collect();
        std::thread::sleep(AROUND);
        let happened = event();
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        (happened, held.into_iter().map(|(what, held)| (what, held.join().expect("held"))).collect())
    })
}

/// The longest wait of each sort.
fn table(event: &str, outcomes: &[Outcome]) {
    let mut sorts: Vec<&str> = outcomes.iter().map(|(what, _)| *what).collect();
    sorts.dedup();
    for sort in sorts {
        let of_sort = outcomes.iter().filter(|(what, _)| *what == sort);
        let (held, waits): (usize, Vec<Duration>) = of_sort.fold((0, Vec::new()), |(all, mut waits), (_, outcome)| {
            waits.extend(outcome.as_ref().ok());
            (all + 1, waits)
        });
        let longest = waits.iter().max().map_or(0, Duration::as_millis);
        println!("| {event} | {sort} | {} of {held} | {longest} ms |", waits.len());
    }
}

/// What an outsider gets from a port that only the switch serves, while there is no agent: nothing, not a refusal.
fn nobody_answers(from: &Endpoint, to: SocketAddr) {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(300));
    let refused = from.namespace.enter(connect).expect("entered").expect_err("no agent");
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "{to}: {refused}");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.namespace.enter(|| UdpSocket::bind(any)).expect("entered").expect("bound");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    socket.connect(to).expect("connected");
    socket.send(b"?").expect("sent");
    let silence = socket.recv(&mut [0]).expect_err("no agent");
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock, "{to}: {silence}");
}

pub(crate) fn connections_outlive_the_agent() {
    let Cluster { agents: [first, other], underlay } = Cluster::on(Underlay::create(1), OPTIONS);
    let outside = Outside::create(&underlay);
    let pods = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = pods.each_ref().map(|pod| pod.add(&underlay.directory));
    let both = [(&ends[1], "a"), (&ends[2], "b")];
    let service = service_at(7, "Cluster", &both, |ipv4| [cluster_ip(ipv4), balancer(ipv4)]);
    underlay.directory.write_objects("service.yaml", &service);
    let own = node(&underlay, 0);
    let (next, _) = (node(&underlay, 1), host(&underlay, 0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let servers = [(&ends[1], PORT), (&ends[2], PORT), (&outside.endpoint, 53)];
        for (server, port) in servers {
            for ipv4 in [true, false] {
                let listen = || TcpListener::bind((server.address(ipv4), port));
                let listener = server.namespace.enter(listen).expect("entered").expect("bound");
                let stop = &stop;
                scope.spawn(move || answer(&listener, stop));
            }
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            restarts(&underlay, first, [&ends[0], &own, &next], &outside.endpoint);
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    other.assert_sound();
}

fn restarts(underlay: &Underlay, first: Agent, [pod, own, next]: [&Endpoint; 3], far: &Endpoint) {
    const NODE_PORT: u16 = 30_087;
    println!("| event | connections | go on | longest wait |\n|---|---|---|---|");
    let mut conversations = Vec::new();
    for ipv4 in [true, false] {
        let sorts = [
            ("a pod to a ClusterIP", pod, SocketAddr::new(cluster_ip(ipv4), 80)),
            ("the node to a ClusterIP", own, SocketAddr::new(cluster_ip(ipv4), 80)),
            ("a pod to the outside, masqueraded", pod, SocketAddr::new(far.address(ipv4), 53)),
            ("another node to a node port", next, SocketAddr::new(own.address(ipv4), NODE_PORT)),
        ];
        for (what, from, to) in sorts {
            conversations.extend((0..EACH / 2).map(|_| Conversation::open(what, from, to)));
        }
    }
    conversations.sort_by_key(|conversation| conversation.what);
    let ((), nothing) = while_held(&mut conversations, || ());
    assert!(nothing.iter().all(|(_, outcome)| outcome.is_ok()), "nothing happened: {nothing:?}");
    let mut agent = Some(first);
    let start = || underlay.start(0, AgentOptions { ..OPTIONS });
    let node_port = |ipv4| SocketAddr::new(own.address(ipv4), NODE_PORT);
    for (event, end) in
        [("told to end, and the next started", drop as fn(Agent)), ("killed, and the next started", Agent::kill)]
    {
        let old = agent.take().expect("an agent");
        let (new, outcomes) = while_held(&mut conversations, || {
            end(old);
            start()
        });
        table(event, &outcomes);
        let ended: Vec<_> = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
        assert_eq!(ended, Vec::<&String>::new(), "{event}");
        let status = new.status();
        assert!(status.connections_taken_over as usize >= conversations.len(), "{status:?}");
        assert_eq!((status.connections_not_taken_over, status.connections_end.as_deref()), (0, None));
        new.assert_sound();
        agent = Some(new);
    }
    agent.take().expect("an agent").kill();
    [true, false].into_iter().for_each(|ipv4| nobody_answers(next, node_port(ipv4)));
    start().assert_sound();
}
