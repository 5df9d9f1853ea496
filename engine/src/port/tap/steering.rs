//! Which queue of a multi-queue TAP a packet from the pod comes out of.
//!
//! Left to itself the kernel moves a flow to the queue that last wrote to it (drivers/net/tun.c,
//! `tun_automq_select_queue`), which reorders the flow whenever two workers take turns. So each TAP gets this
//! program instead: a sum that is the same for both directions of a flow, so that on two TAPs with equally many
//! queues request and reply come to the same worker. The kernel takes the result modulo the number of queues.
//!
//! Addresses and ports of TCP, UDP and SCTP count; addresses alone for other protocols, for fragments and behind
//! IPv6 extension headers; the MAC addresses for what is not IP. The program is assembled here, since it is
//! forty instructions and an ELF would need a loader.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction of eBPF (RFC 9669 section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    opcode: u8,
    /// Destination register in the low four bits, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const RESULT: u8 = 0;
const ARGUMENT: u8 = 1;
const CONTEXT: u8 = 6;
const SUM: u8 = 7;
const TRANSPORT: u8 = 8;

// RFC 9669 section 3: class in the low three bits.
const ALU64: u8 = 0x07;
const ALU32: u8 = 0x04;
const JUMP: u8 = 0x05;
const LOAD: u8 = 0x00;
const ADD: u8 = 0x00;
const MULTIPLY: u8 = 0x20;
const AND: u8 = 0x50;
const SHIFT_LEFT: u8 = 0x60;
const SHIFT_RIGHT: u8 = 0x70;
const EXCLUSIVE_OR: u8 = 0xa0;
const MOVE: u8 = 0xb0;
const REGISTER: u8 = 0x08;
const EQUAL: u8 = 0x10;
const NOT_EQUAL: u8 = 0x50;
const EXIT: u8 = 0x90;
/// Packet loads (RFC 9669 section 5.5), at a constant place and at `TRANSPORT` plus a constant; in host order.
const ABSOLUTE: u8 = 0x20;
const INDIRECT: u8 = 0x40;
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;

/// Where a jump leads; each label is placed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Ipv4,
    Ipv6,
    Protocol,
    Ports,
    Finish,
}

const LABELS: usize = 5;

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    places: [usize; LABELS],
}

impl Assembler {
    fn emit(&mut self, opcode: u8, destination: u8, source: u8, immediate: i32) {
        self.code.push(Instruction { opcode, registers: source << 4 | destination, offset: 0, immediate });
    }

    fn constant(&mut self, operation: u8, destination: u8, value: i32) {
        self.emit(ALU32 | operation, destination, 0, value);
    }

    fn register(&mut self, operation: u8, destination: u8, source: u8) {
        self.emit(ALU64 | REGISTER | operation, destination, source, 0);
    }

    /// Loads from the packet into `RESULT`. Past the packet's end the program ends with 0: the first queue.
    fn load(&mut self, size: u8, at: i32) {
        self.emit(LOAD | ABSOLUTE | size, 0, 0, at);
    }

    fn load_behind_transport(&mut self, size: u8, at: i32) {
        self.emit(LOAD | INDIRECT | size, 0, TRANSPORT, at);
    }

    fn add_to_sum(&mut self) {
        self.register(ADD, SUM, RESULT);
    }

    fn jump(&mut self, condition: u8, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP | condition, RESULT, 0, value);
    }

    fn place(&mut self, label: Label) {
        self.places[label as usize] = self.code.len();
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            self.code[from].offset = (self.places[label as usize] - from - 1) as i16;
        }
        self.code
    }
}

/// Mixes the sum so that neighbouring addresses and ports spread (the finaliser of MurmurHash3, 32 bits).
fn mix(assembler: &mut Assembler) {
    for (shift, factor) in [(16, 0x85eb_ca6b_u32), (13, 0xc2b2_ae35)] {
        fold(assembler, shift);
        assembler.constant(MULTIPLY, SUM, factor as i32);
    }
    fold(assembler, 16);
}

fn fold(assembler: &mut Assembler, shift: i32) {
    assembler.register(MOVE, RESULT, SUM);
    assembler.constant(SHIFT_RIGHT, RESULT, shift);
    assembler.emit(ALU32 | REGISTER | EXCLUSIVE_OR, SUM, RESULT, 0);
}

fn program() -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let a = &mut assembler;
    a.register(MOVE, CONTEXT, ARGUMENT); // packet loads take the context from this register
    a.constant(MOVE, SUM, 0);
    a.load(HALF, 12);
    a.jump(EQUAL, 0x0800, Label::Ipv4);
    a.jump(EQUAL, 0x86dd, Label::Ipv6);
    for at in [2, 8] {
        a.load(WORD, at); // the last four bytes of each MAC address
        a.add_to_sum();
    }
    a.jump(0, 0, Label::Finish);

    a.place(Label::Ipv4);
    for at in [26, 30] {
        a.load(WORD, at);
        a.add_to_sum();
    }
    a.load(HALF, 20);
    a.constant(AND, RESULT, 0x3fff); // more fragments, or an offset
    a.jump(NOT_EQUAL, 0, Label::Finish);
    a.load(BYTE, 14);
    a.constant(AND, RESULT, 0x0f);
    a.constant(SHIFT_LEFT, RESULT, 2);
    a.constant(ADD, RESULT, 14);
    a.register(MOVE, TRANSPORT, RESULT);
    a.load(BYTE, 23);
    a.jump(0, 0, Label::Protocol);

    a.place(Label::Ipv6);
    for at in (22..54).step_by(4) {
        a.load(WORD, at);
        a.add_to_sum();
    }
    a.constant(MOVE, TRANSPORT, 54);
    a.load(BYTE, 20);

    a.place(Label::Protocol);
    for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP] {
        a.jump(EQUAL, protocol, Label::Ports);
    }
    a.jump(0, 0, Label::Finish);

    a.place(Label::Ports);
    mix(a); // otherwise a port could cancel a neighbouring address
    for at in [0, 2] {
        a.load_behind_transport(HALF, at);
        a.add_to_sum();
    }

    a.place(Label::Finish);
    mix(a);
    a.emit(ALU32 | REGISTER | MOVE, RESULT, SUM, 0);
    a.emit(JUMP | EXIT, 0, 0, 0);
    assembler.finish()
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

const BPF_PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// Loads the program; whoever holds the descriptor, or the TAP it is set on, keeps it alive.
///
/// # Errors
/// What bpf(2) said: without CAP_BPF and CAP_NET_ADMIN it refuses.
pub(super) fn load() -> io::Result<OwnedFd> {
    load_as(SOCKET_FILTER)
}

pub(super) fn load_as(program_type: u32) -> io::Result<OwnedFd> {
    let instructions = program();
    let mut name = [0u8; 16];
    name[..12].copy_from_slice(b"millrace_tap");
    let attributes = LoadAttributes {
        program_type,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes and the instructions and text they point to live until the call returns, and their
    // lengths are given; the kernel only reads them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
