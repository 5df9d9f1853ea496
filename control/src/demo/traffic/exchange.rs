//! Small exchanges whose every byte is compared: what pings do not show, since a wrong checksum or a segment out of
//! place needs more than one packet.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, ensure};

use super::{Endpoint, Family, connect, join, pattern};

/// Bytes of a TCP exchange: some units of the largest size.
const TCP_BYTES: usize = 1 << 20;

/// Payloads of a UDP exchange: the least, one odd, and a nearly full frame.
const UDP_BYTES: [usize; 3] = [1, 333, 1300];

/// Times a datagram is sent before it counts as lost: UDP promises nothing.
const UDP_TRIES: usize = 5;

/// Sends a pattern over TCP and has it sent back.
pub fn tcp(client: &Endpoint, server: &Endpoint, family: Family) -> anyhow::Result<()> {
    let (near, far) = connect(client, server, family)?;
    let sent = pattern(TCP_BYTES);
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| echo(far));
        let outcome = exchange(near, &sent);
        let echoed = join(echo);
        // Whose failure came first is not known; the client's says more.
        outcome.and(echoed)
    })
    .with_context(|| format!("TCP exchange of {} and {}", client.name, server.name))
}

fn exchange(mut socket: TcpStream, sent: &[u8]) -> anyhow::Result<()> {
    socket.write_all(sent)?;
    socket.shutdown(Shutdown::Write)?;
    let mut received = Vec::with_capacity(sent.len());
    socket.read_to_end(&mut received)?;
    ensure!(received == sent, "the {} bytes that came back differ from the {} sent", received.len(), sent.len());
    Ok(())
}

/// Takes all, then sends it back.
fn echo(mut socket: TcpStream) -> anyhow::Result<()> {
    let mut received = Vec::with_capacity(TCP_BYTES);
    Read::by_ref(&mut socket).take(2 * TCP_BYTES as u64).read_to_end(&mut received)?;
    socket.write_all(&received)?;
    Ok(())
}

/// Sends datagrams and has them sent back.
pub fn udp(client: &Endpoint, server: &Endpoint, family: Family) -> anyhow::Result<()> {
    let (near, far) = (client.udp_socket(family)?, server.udp_socket(family)?);
    near.connect(far.local_addr()?)?;
    let mut buffer = vec![0; 2048];
    for length in UDP_BYTES {
        let sent = pattern(length);
        let mut arrived = false;
        for _ in 0..UDP_TRIES {
            near.send(&sent)?;
            let Ok((there, source)) = far.recv_from(&mut buffer) else { continue };
            far.send_to(buffer.get(..there).unwrap_or_default(), source)?;
            let Ok(back) = near.recv(&mut buffer) else { continue };
            ensure!(buffer.get(..back) == Some(&sent[..]), "a datagram of {length} bytes came back changed");
            arrived = true;
            break;
        }
        ensure!(arrived, "no datagram of {length} bytes came back from {} to {}", server.name, client.name);
    }
    Ok(())
}
