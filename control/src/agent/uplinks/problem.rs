//! Why an interface could not be taken, or not as it should be, and what to do about it.

use crate::api::model;
use crate::kernel::capabilities::Capability;

/// What is wrong with an uplink. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UplinkProblem {
    /// The kernel refused, and this is what the agent lacks.
    #[error(
        "uplink {interface}: {attempt} was refused, since the agent lacks {}: grant it (`capabilities` of the container's \
         securityContext, `AmbientCapabilities=` of a unit); the kernel said: {said}",
        listed(missing)
    )]
    Capability {
        /// The interface.
        interface: String,
        /// `AF_XDP` or `a packet socket`.
        attempt: &'static str,
        /// What is missing.
        missing: Vec<Capability>,
        /// The kernel's words.
        said: String,
    },
    /// The frames' memory may not be locked.
    #[error(
        "uplink {interface}: AF_XDP was refused, since {limit} bytes of memory may be locked and the frames take {needed}: \
         raise the limit (`ulimit -l unlimited`, `LimitMEMLOCK=infinity` of a unit) or grant CAP_IPC_LOCK; the kernel said: \
         {said}"
    )]
    LockedMemory {
        /// The interface.
        interface: String,
        /// `RLIMIT_MEMLOCK` of the agent.
        limit: u64,
        /// Bytes of frames of a worker.
        needed: u64,
        /// The kernel's words.
        said: String,
    },
    /// More queues than workers.
    #[error(
        "uplink {interface} has {queues} receive queues for {workers} workers: every queue needs a worker of its own; set \
         `ethtool -L {interface} combined {workers}` or raise `workers`"
    )]
    Queues {
        /// The interface.
        interface: String,
        /// Its queues.
        queues: usize,
        /// The workers.
        workers: usize,
    },
    /// Somebody else's program is there.
    #[error(
        "uplink {interface}: another XDP program is attached, perhaps of another agent: end it (`ip -d link show \
         {interface}` names it, `ip link set dev {interface} xdp off` takes one away that nobody holds); the kernel said: \
         {said}"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The kernel's words.
        said: String,
    },
    /// Anything else the kernel refused.
    #[error("uplink {interface}: {said}")]
    Refused {
        /// The interface.
        interface: String,
        /// The kernel's words.
        said: String,
    },
    /// No free port number.
    #[error("uplink {interface}: at most {limit} are possible")]
    TooMany {
        /// The interface.
        interface: String,
        /// How many there are.
        limit: usize,
    },
    /// There is none of this name.
    #[error("uplink {interface}: there is no such interface")]
    Absent {
        /// The interface.
        interface: String,
    },
    /// It works, more slowly than it could.
    #[error(
        "uplink {interface} is served by sockets instead of AF_XDP ({instead}); if that is how it shall be, say \
         `port: udp` or `port: packet` in its Uplink object"
    )]
    Sockets {
        /// The interface.
        interface: String,
        /// What AF_XDP was refused for.
        instead: Box<UplinkProblem>,
    },
    /// The tables of a steering program could not be changed.
    #[error("{said}")]
    Steering {
        /// The engine's words.
        said: String,
    },
}

impl UplinkProblem {
    /// Which of these it is, for programs.
    fn kind(&self) -> &'static str {
        match self {
            UplinkProblem::Capability { .. } => "capability",
            UplinkProblem::LockedMemory { .. } => "locked_memory",
            UplinkProblem::Queues { .. } => "queues",
            UplinkProblem::Occupied { .. } => "occupied",
            UplinkProblem::Refused { .. } => "refused",
            UplinkProblem::TooMany { .. } => "too_many",
            UplinkProblem::Absent { .. } => "absent",
            UplinkProblem::Sockets { .. } => "sockets",
            UplinkProblem::Steering { .. } => "steering",
        }
    }

    /// As the API tells it.
    pub(super) fn told(&self) -> model::Problem {
        let kind = Some(format!("uplink_{}", self.kind()));
        model::Problem { message: self.to_string(), kind, ..model::Problem::default() }
    }
}

fn listed(missing: &[Capability]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
