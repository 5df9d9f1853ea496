//! What two agents of one node say to each other while one takes over from the other, and the socket they say it on.
//!
//! ```text
//!  successor                          running agent
//!  Hello (protocol, node, workers) -->
//!                                  <-- Welcome | Refused    + files of the state, the API's socket and lock
//!                                  <-- Queue, one for each  + its descriptors
//!  (makes itself ready)                (forwards)
//!  Ready                           -->
//!                                  <-- Yours: when each worker's last turn ended
//!  Running                         -->
//!                                  <-- Gone; it ends
//! ```
//! One JSON document a message on a SOCK_SEQPACKET socket, at most 64 KiB, with at most 253 descriptors (`SCM_MAX_FD`). The
//! first message is understood by every version, so that an agent of another one can say so.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_engine::port::handover::HandedKind;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

/// Changes with every change of what the messages or the memory that is handed over mean.
pub const PROTOCOL: u32 = 1;

/// Longest message.
const MESSAGE_BYTES: usize = 64 << 10;
/// Descriptors of one message (include/net/scm.h, `SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;

/// A message. See the module.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// Who wants to take over.
    Hello {
        /// Its protocol.
        protocol: u32,
        /// Its node.
        node: String,
        /// Its worker threads: queues are handed over worker by worker.
        workers: usize,
    },
    /// It may not, or cannot.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// It may. With the files of connections, affinities and changes, and the API's socket and lock.
    Welcome {
        /// Version of the running agent.
        version: String,
        /// Queues that follow.
        queues: usize,
    },
    /// One queue, with its descriptors.
    Queue {
        /// Number of its port at the running agent.
        port: u16,
        /// The worker that has it.
        worker: usize,
        /// What it is.
        #[serde(with = "Kind")]
        kind: HandedKind,
    },
    /// The successor would forward if it were let.
    Ready,
    /// The running agent has stopped forwarding.
    Yours {
        /// When the last turn of each worker ended, in nanoseconds of the monotonic clock.
        paused: Vec<u64>,
    },
    /// The successor forwards.
    Running,
    /// The former agent ends now, and does nothing any more.
    Gone,
}

/// [`HandedKind`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "HandedKind")]
enum Kind {
    Tap { number: usize, udp_segmentation: bool },
    Packet { interface: String, mtu: u32, joins: bool },
    Udp { interface: String, mtu: u32, index: u32, udp_port: u16, has_ipv6: bool },
}

/// Why a takeover did not come about. The running agent goes on in any case.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The running agent said no.
    #[error("the running agent cannot be taken over from: {0}")]
    Refused(String),
    /// The other agent said something else than its turn was.
    #[error("the other agent said {said} where {expected} was expected")]
    Unexpected {
        /// What was expected.
        expected: &'static str,
        /// What came.
        said: String,
    },
    /// The other agent ended, or did not answer in time.
    #[error("the other agent did not say {expected}: {source}")]
    Silent {
        /// What was expected.
        expected: &'static str,
        /// How the wait ended.
        source: io::Error,
    },
    /// This agent is not ready to forward.
    #[error("not ready to forward: {0}")]
    NotReady(String),
    /// The system refused.
    #[error("could not {attempt}: {source}")]
    System {
        /// What was attempted, as an infinitive.
        attempt: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

pub(super) fn failed<E: Into<io::Error>>(attempt: &'static str) -> impl FnOnce(E) -> TakeoverError {
    move |source| TakeoverError::System { attempt, source: source.into() }
}

/// Where a running agent listens for its successor: beside its API's socket.
#[must_use]
pub fn address(api_socket: &Path) -> PathBuf {
    let mut name = api_socket.as_os_str().to_owned();
    name.push(".takeover");
    PathBuf::from(name)
}

/// A connection between two agents.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// A connection that was accepted.
    pub(super) fn accepted(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Connects to the agent that listens beside `api_socket`.
    ///
    /// # Errors
    /// Nobody listens there, or the kernel refused.
    pub fn to(api_socket: &Path) -> Result<Self, TakeoverError> {
        let attempt = "reach the running agent";
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(failed("make a socket"))?;
        let address = SocketAddrUnix::new(address(api_socket)).map_err(failed(attempt))?;
        rustix::net::connect(&socket, &address).map_err(failed(attempt))?;
        Ok(Self(socket))
    }

    /// Sends a message, with descriptors of which the other agent gets its own.
    ///
    /// # Errors
    /// The other agent has ended.
    pub fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), TakeoverError> {
        let bytes = serde_json::to_vec(message).map_err(|error| failed("write a message")(io::Error::other(error)))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(failed("send descriptors")(io::Error::other("too many at once")));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(failed("send a message to the other agent"))
    }

    /// Waits for the next message, at most `patience`.
    ///
    /// # Errors
    /// [`TakeoverError::Silent`], or a message that is none.
    pub fn hear(&self, expected: &'static str, patience: Duration) -> Result<(Message, Vec<OwnedFd>), TakeoverError> {
        let silent = |source: io::Error| TakeoverError::Silent { expected, source };
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, Some(patience)).map_err(|error| silent(error.into()))?;
        let mut bytes = vec![0; MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = received.map_err(|error| silent(error.into()))?.bytes;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received == 0 {
            return Err(silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let message = serde_json::from_slice(&bytes[..received]);
        let message = message.map_err(|error| failed("read the other agent's message")(io::Error::other(error)))?;
        match message {
            Message::Refused { reason } => Err(TakeoverError::Refused(reason)),
            message => Ok((message, descriptors)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn unexpected(expected: &'static str, said: &Message) -> TakeoverError {
    TakeoverError::Unexpected { expected, said: format!("{said:?}") }
}
