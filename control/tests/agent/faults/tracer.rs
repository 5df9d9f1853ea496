//! Stops a process at the N-th step of its work, by ptrace(2), so that a fault meets every step for certain.
//!
//! A step is a system call by which something outside the process's memory may change: files, interfaces, addresses and
//! routes, sockets. Calls are counted over all threads of the process but workers: those move packets, and what they hold
//! goes with the process. Whatever lies between two steps ends as either of them does, since memory goes too. The product
//! knows nothing of it. A thread is stopped on its way into the call, which has not happened then.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// System calls that are steps, with their names.
const STEPS: &[(libc::c_long, &str)] = &[
    (libc::SYS_bind, "bind"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_setsockopt, "setsockopt"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
];

/// What a stop on the way into a call says (`PTRACE_SYSCALL_INFO_ENTRY` in include/uapi/linux/ptrace.h).
const ENTRY: u8 = 1;

/// Nothing happened: how long to wait before looking again.
const PAUSE: Duration = Duration::from_micros(20);

/// Where a process was stopped.
#[derive(Debug)]
pub(super) struct Step {
    /// Name of the thread.
    pub(super) thread: String,
    /// The call it was about to make.
    pub(super) call: &'static str,
}

/// Runs `call`, and `act` while the process stands before its `number`-th step from now on (from 1); says which step that
/// was, or `None` if `call` was over before.
pub(super) fn at_step<T>(
    process: u32,
    number: usize,
    act: impl FnOnce() + Send,
    call: impl FnOnce() -> T,
) -> (T, Option<Step>) {
    let (ready, begin) = mpsc::channel();
    let over = AtomicBool::new(false);
    let process = Pid::from_raw(i32::try_from(process).expect("a process number"));
    std::thread::scope(|scope| {
        let over = Over(&over);
        let seen = over.0;
        // All requests come from the thread that seized; when it ends, the kernel lets go of what it traced.
        let tracer = scope.spawn(move || {
            seize(process);
            ready.send(()).expect("the caller waits");
            let step = follow(process, number, seen);
            if step.is_some() {
                act();
            }
            step
        });
        begin.recv().expect("the process is seized");
        let outcome = call();
        drop(over);
        (outcome, tracer.join().expect("tracer"))
    })
}

/// Tells the tracer that the call is over, also where it ended by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn name_of(process: Pid, thread: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn seize(process: Pid) {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXIT;
    for entry in fs::read_dir(format!("/proc/{process}/task")).expect("threads") {
        let number = entry.expect("thread").file_name().to_string_lossy().parse().expect("number");
        let thread = Pid::from_raw(number);
        // A thread may end meanwhile.
        if !name_of(process, thread).starts_with("worker-") && ptrace::seize(thread, options).is_ok() {
            let _ = ptrace::interrupt(thread);
        }
    }
}

fn follow(process: Pid, number: usize, over: &AtomicBool) -> Option<Step> {
    // Others of this program's threads wait for children of theirs.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
    let mut count = 0;
    loop {
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) if over.load(Ordering::SeqCst) => return None,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(PAUSE),
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if let Some(call) = step(thread) {
                    count += 1;
                    if count == number {
                        return Some(Step { thread: name_of(process, thread), call });
                    }
                }
                let _ = ptrace::syscall(thread, None);
            }
            // Who waits for the process shall learn of its end, not this thread.
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                if thread == process && event == libc::PTRACE_EVENT_EXIT {
                    return None;
                }
                let _ = ptrace::syscall(thread, None);
            }
            Ok(WaitStatus::Stopped(thread, signal)) => drop(ptrace::syscall(thread, Some(signal))),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// The name of the call that the thread is about to make, if it is a step.
fn step(thread: Pid) -> Option<&'static str> {
    if ptrace::syscall_info(thread).ok()?.op != ENTRY {
        return None;
    }
    let (number, flags) = call(thread)?;
    let writes = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) as u64;
    let reads_only = number == libc::SYS_openat && flags & writes == 0;
    STEPS.iter().find(|(step, _)| *step == number && !reads_only).map(|(_, name)| *name)
}

/// The call's number and its third argument.
#[cfg(target_arch = "x86_64")]
fn call(thread: Pid) -> Option<(libc::c_long, u64)> {
    let registers = ptrace::getregs(thread).ok()?;
    Some((registers.orig_rax as libc::c_long, registers.rdx))
}

/// The call's number and its third argument.
#[cfg(target_arch = "aarch64")]
fn call(thread: Pid) -> Option<(libc::c_long, u64)> {
    let registers = ptrace::getregs(thread).ok()?;
    Some((registers.regs[8] as libc::c_long, registers.regs[2]))
}

/// Kills a process that is stopped or not.
pub(super) fn kill(process: u32) {
    let _ = nix::sys::signal::kill(Pid::from_raw(i32::try_from(process).expect("a process number")), Signal::SIGKILL);
}
