//! The side of the agent that runs: it listens for a successor, gives it everything, stands still, and ends or goes on.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_engine::clock::Time;
use millrace_engine::switch::Switch;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::super::FIRST_BRIDGE_PORT;
use super::super::shared::Shared;
use super::message::{Connection, Message, PROTOCOL, TakeoverError, address, failed, unexpected};
use crate::api::server::Gate;

/// How long the successor may take to say who it is.
const GREETING: Duration = Duration::from_secs(1);
/// How long it may take to make itself ready.
const READYING: Duration = Duration::from_secs(30);
/// How long it may take to forward, while nobody does.
const STARTING: Duration = Duration::from_millis(300);
/// How long calls at work may take to end.
const CALLS: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(5);

/// What the running agent gives away beside its switch.
pub(in crate::agent) struct Giver {
    pub(in crate::agent) shared: Arc<Shared>,
    /// Closed while somebody takes over.
    pub(in crate::agent) gate: Gate,
    /// The API's socket and lock.
    pub(in crate::agent) api: [OwnedFd; 2],
}

impl Giver {
    /// Listens beside the API's socket, on a thread that ends with the process.
    ///
    /// # Errors
    /// The kernel refused a socket or a thread.
    pub(in crate::agent) fn start(self, api_socket: &Path) -> std::io::Result<()> {
        let path = address(api_socket);
        let beside = path.with_extension("takeover.new");
        let _ = fs::remove_file(&beside);
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&beside)?)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&socket, 1)?;
        fs::rename(&beside, &path)?;
        std::thread::Builder::new().name("takeover".into()).spawn(move || self.listen(&socket))?;
        Ok(())
    }

    fn listen(&self, socket: &OwnedFd) {
        let mut said = None;
        loop {
            let Ok(accepted) = rustix::net::accept_with(socket, SocketFlags::CLOEXEC) else {
                std::thread::sleep(GREETING);
                continue;
            };
            let Err(error) = self.give(&Connection::accepted(accepted));
            let message = format!("an agent that wanted to take over did not, and this one goes on: {error}");
            said.replace(message.clone()).into_iter().for_each(|former: String| self.shared.retract(&former));
            self.shared.report(message);
        }
    }

    /// Gives everything to who is at the other end, and ends the process; or says why this one goes on.
    fn give(&self, successor: &Connection) -> Result<std::convert::Infallible, TakeoverError> {
        let (user, process) = peer(successor).map_err(failed("ask who the successor is"))?;
        if user != 0 && user != rustix::process::geteuid().as_raw() {
            return self.refuse(successor, format!("user {user} may not"));
        }
        let Some(process) = process else {
            return self.refuse(successor, "its process is not to be seen from here: another PID namespace".to_owned());
        };
        let process = rustix::process::pidfd_open(process, PidfdFlags::empty());
        let process = process.map_err(failed("watch the successor's process"))?;
        self.greet(successor)?;
        let _closed = Closed::new(self)?;
        let handed = self.shared.switch.with(|switch| Ok((switch.state_files()?, switch.handed_queues())));
        let (files, ports) = handed.map_err(|error: std::io::Error| failed("give the state away")(error))?;
        let mut queues = Vec::new();
        for (port, handed) in ports {
            match handed {
                Ok(_) if port.0 >= FIRST_BRIDGE_PORT => {
                    return self.refuse(successor, format!("port {} of a bridge cannot be handed over", port.0));
                }
                Ok(handed) => queues.extend(handed.into_iter().map(|(worker, queue)| (port, worker, queue))),
                Err(error) => {
                    let why = "AF_XDP queues cannot be handed over (`spec.port` of the Uplink)";
                    return self.refuse(successor, format!("port {}: {error}: {why}", port.0));
                }
            }
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let [socket, lock] = &self.api;
        let given = [&files.connections, &files.affinities, &files.journal, socket, lock].map(AsFd::as_fd);
        successor.say(&Message::Welcome { version, queues: queues.len() }, &given)?;
        for (port, worker, queue) in queues {
            let descriptors: Vec<_> = queue.descriptors.iter().map(AsFd::as_fd).collect();
            successor.say(&Message::Queue { port: port.0, worker, kind: queue.kind }, &descriptors)?;
        }
        match successor.hear("Ready", READYING)?.0 {
            Message::Ready => {}
            other => return Err(unexpected("Ready", &other)),
        }
        let error = self.shared.switch.with(|switch| stand_still(switch, successor, &process));
        Err(error)
    }

    fn greet(&self, successor: &Connection) -> Result<(), TakeoverError> {
        let (protocol, node, workers) = match successor.hear("Hello", GREETING)?.0 {
            Message::Hello { protocol, node, workers } => (protocol, node, workers),
            other => return Err(unexpected("Hello", &other)),
        };
        let own = self.shared.switch.with(|switch| switch.options().workers);
        let refused = if protocol != PROTOCOL {
            format!("it speaks protocol {PROTOCOL} of takeovers and the new one {protocol}: restart instead")
        } else if node != self.shared.node.as_str() {
            format!("it is the agent of node {} and the new one of {node}", self.shared.node.as_str())
        } else if workers != own {
            format!("it has {own} workers and the new one {workers}: restart to change their number")
        } else {
            return Ok(());
        };
        self.refuse(successor, refused).map(|never| match never {})
    }

    fn refuse(&self, successor: &Connection, reason: String) -> Result<std::convert::Infallible, TakeoverError> {
        // It may have gone meanwhile.
        let _ = successor.say(&Message::Refused { reason: reason.clone() }, &[]);
        Err(TakeoverError::Refused(reason))
    }
}

/// The user and the process at the other end; no process if it is in a PID namespace that this one does not see.
fn peer(connection: &Connection) -> std::io::Result<(u32, Option<Pid>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    let stream = UnixStream::from(connection.as_fd().try_clone_to_owned()?);
    // What the runtime wants to be given; the descriptor's other copy is waited on, so it is set back.
    stream.set_nonblocking(true)?;
    let credentials = tokio::net::UnixStream::from_std(stream)?.peer_cred();
    rustix::io::ioctl_fionbio(connection, false)?;
    let credentials = credentials?;
    Ok((credentials.uid(), credentials.pid().and_then(Pid::from_raw)))
}

/// With nobody else at the switch: stops it, lets the successor start, and ends the process. Otherwise why it goes on.
fn stand_still(switch: &mut Switch, successor: &Connection, process: &OwnedFd) -> TakeoverError {
    let outcome = switch.pause().map_err(failed("stop the workers")).and_then(|paused| {
        let paused = paused.into_iter().map(Time::nanoseconds).collect();
        successor.say(&Message::Yours { paused }, &[])?;
        match successor.hear("Running", STARTING)?.0 {
            Message::Running => successor.say(&Message::Gone, &[]),
            other => Err(unexpected("Running", &other)),
        }
    });
    let Err(error) = outcome else { std::process::exit(0) };
    let ended = end(process);
    match ended.and_then(|()| switch.go_on()) {
        Ok(()) => error,
        Err(source) => TakeoverError::System { attempt: "go on after a takeover that failed", source },
    }
}

/// Ends the successor for certain: it may read from the queues.
fn end(process: &OwnedFd) -> std::io::Result<()> {
    match rustix::process::pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let until = Instant::now() + DYING;
    let step = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    while Instant::now() < until {
        // Readable when the process has ended.
        if matches!(rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&step)), Ok(1)) {
            return Ok(());
        }
    }
    Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the successor does not end"))
}

/// While it lives no calls are accepted and no interface changes.
struct Closed<'a>(&'a Giver);

impl<'a> Closed<'a> {
    fn new(giver: &'a Giver) -> Result<Self, TakeoverError> {
        giver.shared.handing_over.store(true, Ordering::SeqCst);
        let closed = Self(giver);
        if !giver.gate.close(CALLS) {
            return Err(TakeoverError::NotReady("calls of the runtime do not end".to_owned()));
        }
        Ok(closed)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let Giver { shared, gate, .. } = self.0;
        shared.switch.with(|switch| switch.state().keep());
        gate.open();
        shared.handing_over.store(false, Ordering::SeqCst);
    }
}
