//! Traffic between two namespaces, every byte of it compared.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_control::kernel::NamespaceHandle;

/// Longest silence in a TCP stream.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the way may take to open: next hops are being resolved.
const OPENING: Duration = Duration::from_secs(15);
/// Bytes of a TCP stream in each direction.
const STREAM_BYTES: usize = 4 << 20;
/// Payloads of UDP: empty, small, odd, and nearly a whole frame.
const UDP_BYTES: [usize; 5] = [8, 9, 64, 333, 1350];

/// Where traffic starts or ends.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// For messages.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: NamespaceHandle,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Endpoint {
    /// Its address of a family.
    pub(crate) fn address(&self, ipv4: bool) -> IpAddr {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == ipv4);
        *found.unwrap_or_else(|| panic!("{} has no such address: {:?}", self.name, self.addresses))
    }

    /// A UDP socket at its address.
    pub(crate) fn udp(&self, ipv4: bool) -> UdpSocket {
        let address = (self.address(ipv4), 0);
        self.namespace.enter(|| UdpSocket::bind(address)).expect("entered").expect("bound")
    }
}

/// UDP, TCP in both directions, over both families, from either side.
pub(crate) fn check(one: &Endpoint, other: &Endpoint) {
    for ipv4 in [true, false] {
        for (client, server) in [(one, other), (other, one)] {
            udp(client, server, ipv4);
            bursts(client, server, ipv4);
            tcp(client, server, ipv4);
        }
    }
}

/// Datagrams that come back as they were sent. Only the first may be lost, while the way opens.
pub(crate) fn udp(client: &Endpoint, server: &Endpoint, ipv4: bool) {
    let sockets = [client.udp(ipv4), server.udp(ipv4)];
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    }
    let end = Instant::now() + OPENING;
    while !echo(&sockets, 8) {
        assert!(
            Instant::now() < end,
            "UDP from {} to {} does not get through (IPv4: {ipv4})",
            client.name,
            server.name
        );
    }
    for length in UDP_BYTES {
        // A busy machine may take long; a frame that is lost never comes.
        let came = (0..3).any(|_| echo(&sockets, length));
        assert!(came, "{length} bytes of UDP from {} to {} (IPv4: {ipv4})", client.name, server.name);
    }
}

/// Datagrams of one flow sent at once arrive one by one as they were sent, in order, however they crossed: long ones behind
/// each other, a shorter one among them, short ones.
fn bursts(client: &Endpoint, server: &Endpoint, ipv4: bool) {
    const LENGTHS: [usize; 9] = [700, 700, 700, 64, 64, 1100, 1100, 1, 900];
    let [sender, receiver] = [client.udp(ipv4), server.udp(ipv4)];
    receiver.set_read_timeout(Some(SILENCE)).expect("timeout");
    let (target, own) = (receiver.local_addr().expect("address"), sender.local_addr().expect("address"));
    let mut buffer = vec![0; 2048];
    for round in 0..20 {
        let sent: Vec<_> = (0..32).map(|at| pattern(LENGTHS[(at + round) % LENGTHS.len()], 64 * round + at)).collect();
        for datagram in &sent {
            sender.send_to(datagram, target).expect("sent");
        }
        for (at, datagram) in sent.iter().enumerate() {
            let (length, from) = receiver.recv_from(&mut buffer).expect("every datagram of a burst arrives");
            assert!((&buffer[..length], from) == (&datagram[..], own), "datagram {at} of burst {round} from {from}");
        }
    }
}

/// Sends one datagram there and back; false if either got lost.
fn echo([client, server]: &[UdpSocket; 2], length: usize) -> bool {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let sent = pattern(length, NEXT.fetch_add(1, Ordering::Relaxed));
    let target = server.local_addr().expect("address");
    let mut buffer = vec![0; 2048];
    if client.send_to(&sent, target).is_err() {
        // An error that an earlier datagram met.
        return false;
    }
    let own = client.local_addr().expect("address");
    let Some(length) = receive(server, &mut buffer, &sent, own) else { return false };
    server.send_to(&buffer[..length], own).expect("sent");
    receive(client, &mut buffer, &sent, target).is_some()
}

/// Waits for these very bytes from `peer`; what came late from an earlier try is passed over.
fn receive(socket: &UdpSocket, buffer: &mut [u8], wanted: &[u8], peer: SocketAddr) -> Option<usize> {
    loop {
        let (length, from) = socket.recv_from(buffer).ok()?;
        assert_eq!(from, peer, "the source address is the sender's");
        if &buffer[..length] == wanted {
            return Some(length);
        }
    }
}

/// A TCP stream in each direction at once.
pub(crate) fn tcp(client: &Endpoint, server: &Endpoint, ipv4: bool) {
    tcp_of(client, server, ipv4, STREAM_BYTES);
}

/// A TCP stream of this many bytes in each direction at once.
pub(crate) fn tcp_of(client: &Endpoint, server: &Endpoint, ipv4: bool, bytes: usize) {
    let listen = || TcpListener::bind((server.address(ipv4), 0));
    let listener = server.namespace.enter(listen).expect("entered").expect("bound");
    let target = listener.local_addr().expect("address");
    std::thread::scope(|scope| {
        let accepting = scope.spawn(move || {
            let (socket, _) = listener.accept().expect("accepted");
            exchange(&socket, 1, 0, bytes);
        });
        let near = connect(client, target);
        match near {
            Ok(socket) => exchange(&socket, 0, 1, bytes),
            Err(error) => {
                // Lets the other thread go before saying so.
                let _ = server.namespace.enter(|| TcpStream::connect_timeout(&target, SILENCE));
                panic!("TCP from {} to {} (IPv4: {ipv4}): {error}", client.name, server.name);
            }
        }
        accepting.join().expect("the server's side");
    });
}

fn connect(client: &Endpoint, target: SocketAddr) -> std::io::Result<TcpStream> {
    client.namespace.enter(|| TcpStream::connect_timeout(&target, SILENCE)).expect("entered")
}

/// Sends one pattern and receives another.
fn exchange(socket: &TcpStream, own: usize, others: usize, bytes: usize) {
    socket.set_read_timeout(Some(SILENCE)).expect("timeout");
    socket.set_write_timeout(Some(SILENCE)).expect("timeout");
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut socket = socket;
            socket.write_all(&pattern(bytes, own)).expect("sent");
            socket.shutdown(Shutdown::Write).expect("shut down");
        });
        let mut received = Vec::with_capacity(bytes);
        let mut reader = socket;
        reader.read_to_end(&mut received).expect("received");
        assert!(received == pattern(bytes, others), "what arrived is not what was sent ({} bytes)", received.len());
        sending.join().expect("the sending side");
    });
}

/// Bytes in which a piece that is missing or in the wrong place shows.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state ^ (state >> 29)).to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}
