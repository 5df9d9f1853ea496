//! What is compared: two pods and what stands between them.

use clap::ValueEnum;
use millrace_control::demo::traffic::Endpoint;

use crate::bridge::Bridge;
use crate::switch::TapSwitch;

/// A kind of backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// veth pods on a Linux bridge.
    Bridge,
    /// TAP pods on a switch.
    Tap,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bridge => "bridge",
            Kind::Tap => "tap",
        }
    }
}

/// A backend that stands.
pub(crate) struct Backend {
    pub(crate) kind: Kind,
    pub(crate) pods: [Endpoint; 2],
    /// What ends with the backend.
    _parts: Parts,
}

enum Parts {
    Bridge { _bridge: Bridge },
    Tap { _switch: TapSwitch },
}

impl Backend {
    pub(crate) fn build(kind: Kind, worker: Option<usize>, spin: Option<u64>) -> anyhow::Result<Backend> {
        let (pods, parts) = match kind {
            Kind::Bridge => {
                let bridge = Bridge::build()?;
                (bridge.endpoints(), Parts::Bridge { _bridge: bridge })
            }
            Kind::Tap => {
                let switch = TapSwitch::build(worker, spin)?;
                (switch.endpoints(), Parts::Tap { _switch: switch })
            }
        };
        Ok(Backend { kind, pods, _parts: parts })
    }
}
