//! Which capabilities of capabilities(7) the agent has, among those that interfaces are taken with.

use std::fmt;

/// A capability that taking an interface may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Loading programs.
    Bpf,
    /// Locking more memory than the limit.
    IpcLock,
    /// Attaching programs, changing interfaces.
    NetAdmin,
    /// Raw sockets: AF_XDP and AF_PACKET.
    NetRaw,
}

impl Capability {
    /// Its bit (include/uapi/linux/capability.h).
    fn number(self) -> u32 {
        match self {
            Capability::NetAdmin => 12,
            Capability::NetRaw => 13,
            Capability::IpcLock => 14,
            Capability::Bpf => 39,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Capability::Bpf => "CAP_BPF",
            Capability::IpcLock => "CAP_IPC_LOCK",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::NetRaw => "CAP_NET_RAW",
        })
    }
}

/// `CAP_SYS_ADMIN`, which stands for `CAP_BPF` too.
const SYS_ADMIN: u32 = 21;

/// Those of `needed` that the calling thread lacks; none if the kernel does not say.
#[must_use]
pub fn missing(needed: &[Capability]) -> Vec<Capability> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).map_or_else(Vec::new, |held| lacking(held, needed))
}

/// The line `CapEff` of proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn lacking(held: u64, needed: &[Capability]) -> Vec<Capability> {
    let has = |bit: u32| held >> bit & 1 == 1;
    let stands_for = |capability: Capability| capability == Capability::Bpf && has(SYS_ADMIN);
    needed.iter().copied().filter(|capability| !has(capability.number()) && !stands_for(*capability)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Capability; 4] = [Capability::Bpf, Capability::IpcLock, Capability::NetAdmin, Capability::NetRaw];

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tmillrace\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some(0x1ff_ffff_ffff));
        assert_eq!((effective(""), effective("CapEff:\tnothing")), (None, None));
    }

    #[test]
    fn what_lacks_is_named() {
        assert_eq!(lacking(u64::MAX, &ALL), []);
        assert_eq!(lacking(0, &ALL), ALL);
        assert_eq!(lacking(1 << 21, &ALL), ALL[1..]);
        assert_eq!(lacking(1 << 12 | 1 << 39, &ALL), [Capability::IpcLock, Capability::NetRaw]);
        assert_eq!(Capability::NetRaw.to_string(), "CAP_NET_RAW");
    }
}
