//! Runs the steering program on frames of a test, in the kernel: what it would answer, without a TAP.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::steering::load_as;

/// BPF_PROG_TEST_RUN's part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    result: u32,
    input_length: u32,
    output_length: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// The kernel starts a socket filter behind the MAC header in a test run; a classifier sees what a TAP gives.
const CLASSIFIER: u32 = 3;
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The steering program, loaded.
#[derive(Debug)]
pub struct SteeringRun(OwnedFd);

impl SteeringRun {
    /// Loads it.
    ///
    /// # Errors
    /// What the kernel's verifier said.
    pub fn load() -> io::Result<Self> {
        load_as(CLASSIFIER).map(Self)
    }

    /// What it answers for a frame; the kernel takes that modulo the number of queues.
    ///
    /// # Errors
    /// If the kernel refused to run it.
    pub fn answer(&self, frame: &[u8]) -> io::Result<u32> {
        let mut attributes = RunAttributes {
            program: self.0.as_raw_fd() as u32,
            input_length: frame.len() as u32,
            input: frame.as_ptr() as u64,
            ..RunAttributes::default()
        };
        // SAFETY: the attributes and the frame live until the call returns, with their lengths given.
        let outcome =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<RunAttributes>()) };
        if outcome == 0 { Ok(attributes.result) } else { Err(io::Error::last_os_error()) }
    }
}
