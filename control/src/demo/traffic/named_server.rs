//! Servers that say who they are: each connection gets one byte, the server's number. So a client of a Service sees which
//! endpoint it was given.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Endpoint, Family};

/// How often a server without clients looks whether it should end.
const STEP: Duration = Duration::from_millis(2);

/// Listens at both addresses of an endpoint.
pub(crate) fn listen(at: &Endpoint, port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let listen = |family| {
        let address = at.address(family)?;
        let listener = at.open("listen", || TcpListener::bind((address, port)))?;
        listener.set_nonblocking(true)?;
        anyhow::Ok(listener)
    };
    Family::BOTH.into_iter().map(listen).collect()
}

/// Answers until `ended` is set.
pub(crate) fn serve(listeners: &[TcpListener], number: u8, ended: &AtomicBool) -> io::Result<()> {
    while !ended.load(Ordering::Relaxed) {
        let mut served = false;
        for listener in listeners {
            match listener.accept() {
                Ok((stream, _)) => {
                    served = true;
                    // A client that gave up meanwhile says so itself.
                    let _ = tell(stream, number);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        if !served {
            std::thread::sleep(STEP);
        }
    }
    Ok(())
}

fn tell(mut stream: TcpStream, number: u8) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.write_all(&[number])?;
    stream.shutdown(Shutdown::Write)
}

/// Connects again and again to `to`, until `goes_on` says no, and tells each outcome: how long after the start it was
/// known, and the number of the server or what failed. Runs in the namespace of the caller.
pub(crate) fn ask(
    from: &Endpoint,
    to: (IpAddr, u16),
    patience: Duration,
    mut goes_on: impl FnMut(usize) -> bool + Send,
) -> anyhow::Result<Vec<(Duration, Result<u8, ErrorKind>)>> {
    let target = SocketAddr::from(to);
    from.open("connect", move || {
        let start = Instant::now();
        let mut answers = Vec::new();
        while goes_on(answers.len()) {
            let answer = ask_once(target, patience).map_err(|error| error.kind());
            answers.push((start.elapsed(), answer));
        }
        Ok(answers)
    })
}

fn ask_once(target: SocketAddr, patience: Duration) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut number = [0];
    stream.read_exact(&mut number)?;
    Ok(number[0])
}
