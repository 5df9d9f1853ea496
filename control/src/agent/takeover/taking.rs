//! The side of the successor.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::packet::PortIndex;
use millrace_engine::port::handover::HandedQueue;
use millrace_engine::state::StateFiles;

use super::super::shared::{Shared, Standing};
use super::inherited::Inherited;
use super::message::{Connection, Message, PROTOCOL, TakeoverError, failed, unexpected};
use crate::api::socket::Socket;
use crate::cluster::NodeName;

/// How long the running agent may take for its next word.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long tables may take to have every port.
const READYING: Duration = Duration::from_secs(20);
/// How long nothing was published when this agent is ready.
const QUIET: Duration = Duration::from_millis(200);
/// How long workers may take for their first turn.
const FIRST_TURN: Duration = Duration::from_millis(250);

/// A takeover that has begun.
pub(in crate::agent) struct Takeover {
    connection: Connection,
    files: Option<StateFiles>,
    api: Option<[OwnedFd; 2]>,
}

impl Takeover {
    /// Asks the agent beside `api_socket`, and puts what it gives into `inherited`.
    pub(in crate::agent) fn begin(
        api_socket: &Path,
        node: &NodeName,
        workers: usize,
        inherited: &Inherited,
    ) -> Result<Self, TakeoverError> {
        let connection = Connection::to(api_socket)?;
        connection.say(&Message::Hello { protocol: PROTOCOL, node: node.as_str().to_owned(), workers }, &[])?;
        let (message, descriptors) = connection.hear("Welcome", PATIENCE)?;
        let Message::Welcome { queues, .. } = message else { return Err(unexpected("Welcome", &message)) };
        let files: Result<[OwnedFd; 5], _> = descriptors.try_into();
        let [connections, affinities, journal, socket, lock] =
            files.map_err(|_| TakeoverError::NotReady("the running agent gave other files".to_owned()))?;
        for _ in 0..queues {
            let (message, descriptors) = connection.hear("Queue", PATIENCE)?;
            let Message::Queue { port, worker, kind } = message else { return Err(unexpected("Queue", &message)) };
            if worker >= workers {
                return Err(TakeoverError::NotReady(format!("a queue of worker {worker}, which is not there")));
            }
            inherited.put(PortIndex(port), worker, HandedQueue { kind, descriptors });
        }
        let files = Some(StateFiles { connections, affinities, journal });
        Ok(Self { connection, files, api: Some([socket, lock]) })
    }

    /// The files of the state; once.
    pub(in crate::agent) fn files(&mut self) -> Option<StateFiles> {
        self.files.take()
    }

    /// The API's socket; once.
    pub(in crate::agent) fn socket(&mut self, path: &Path) -> Option<Result<Socket, TakeoverError>> {
        let [socket, lock] = self.api.take()?;
        Some(Socket::inherit(socket, lock, path).map_err(failed("take the API's socket over")))
    }

    /// Waits until this agent is ready, and takes over. After an error this process must end at once.
    pub(in crate::agent) fn finish(self, shared: &Arc<Shared>) -> Result<(), TakeoverError> {
        ready(shared)?;
        self.connection.say(&Message::Ready, &[])?;
        let message = self.connection.hear("Yours", PATIENCE)?.0;
        let Message::Yours { paused } = message else { return Err(unexpected("Yours", &message)) };
        let begun = shared.switch.with(|switch| {
            switch.catch_up();
            switch.start().map_err(failed("start the workers"))?;
            let until = Instant::now() + FIRST_TURN;
            loop {
                let begun: Vec<u64> = switch.begun().into_iter().map(|time| time.nanoseconds()).collect();
                if begun.iter().all(|time| *time > 0) {
                    return Ok(begun);
                }
                if Instant::now() > until {
                    return Err(TakeoverError::NotReady("workers do not start".to_owned()));
                }
                std::thread::yield_now();
            }
        })?;
        self.connection.say(&Message::Running, &[])?;
        match self.connection.hear("Gone", PATIENCE)?.0 {
            Message::Gone => {}
            other => return Err(unexpected("Gone", &other)),
        }
        shared.switch.with(millrace_engine::switch::Switch::succeed);
        shared.inherited.is_gone();
        // It has said its last word: what comes is the end of its process, which has ports of TCP that this one wants.
        let _ = self.connection.hear("the end", PATIENCE);
        let gaps = begun.iter().zip(&paused).map(|(begun, paused)| begun.saturating_sub(*paused) / 1_000);
        let _ = shared.takeover_gaps.set(gaps.collect());
        Ok(())
    }
}

/// Waits until tables have every port that was handed over, and nothing more is about to come.
fn ready(shared: &Arc<Shared>) -> Result<(), TakeoverError> {
    let stands = |standing: &Standing| standing.uplinks_known && standing.plan.is_some();
    let until = Instant::now() + READYING;
    loop {
        let left = shared.inherited.left();
        let quiet = shared.standing().published.is_some_and(|at| at.elapsed() >= QUIET);
        if left.is_empty() && quiet && stands(&shared.standing()) {
            return Ok(());
        }
        if Instant::now() > until {
            let known = stands(&shared.standing());
            return Err(TakeoverError::NotReady(format!(
                "ports that nobody took up: {left:?}; tables and uplinks known: {known}"
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
