//! Which frames come in, as a program of the classic packet filter (Documentation/networking/filter.rst).
//!
//! A list of comparisons: constant cost for groups, a handful of instructions for each station that is not the one. The
//! kernel translates it into machine code where it can. It takes at most 4,096 instructions (`BPF_MAXINSNS`), which
//! bounds the stations ([`limits::PACKET_STATIONS`](crate::limits::PACKET_STATIONS)).

use crate::packet::Mac;

/// One instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u16,
    /// Instructions to pass over if a comparison holds, and if it does not.
    holds: u8,
    fails: u8,
    operand: u32,
}

// Codes of include/uapi/linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// As much as any frame has.
const ALL_BYTES: u32 = u32::MAX;

const fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction { code, holds: 0, fails: 0, operand }
}

const fn jump(code: u16, operand: u32, holds: u8, fails: u8) -> Instruction {
    Instruction { code, holds, fails, operand }
}

pub(super) fn everything() -> Vec<Instruction> {
    vec![instruction(RETURN, ALL_BYTES)]
}

pub(super) fn nothing() -> Vec<Instruction> {
    vec![instruction(RETURN, 0)]
}

/// Frames to groups and to these stations.
pub(super) fn stations(stations: &[Mac]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_BYTE, 0),
        jump(JUMP_IF_SET, 1, 0, 1),
        instruction(RETURN, ALL_BYTES),
        instruction(LOAD_WORD, 0),
    ];
    for Mac([a, b, c, d, e, f]) in stations {
        program.extend([
            jump(JUMP_IF_EQUAL, u32::from_be_bytes([*a, *b, *c, *d]), 0, 4),
            instruction(LOAD_HALF, 4),
            jump(JUMP_IF_EQUAL, u32::from(u16::from_be_bytes([*e, *f])), 0, 1),
            instruction(RETURN, ALL_BYTES),
            instruction(LOAD_WORD, 0),
        ]);
    }
    program.push(instruction(RETURN, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PACKET_STATIONS;

    /// Runs a program over a frame as the kernel does: whether the frame is taken.
    fn takes(program: &[Instruction], frame: &[u8]) -> bool {
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let Instruction { code, holds, fails, operand } = program[at];
            let from = operand as usize;
            let load = |bytes: usize| frame[from..from + bytes].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            let mut skip = 0;
            match code {
                LOAD_BYTE => accumulator = load(1),
                LOAD_HALF => accumulator = load(2),
                LOAD_WORD => accumulator = load(4),
                JUMP_IF_EQUAL => skip = if accumulator == operand { holds } else { fails },
                JUMP_IF_SET => skip = if accumulator & operand != 0 { holds } else { fails },
                RETURN => return operand != 0,
                other => panic!("code {other:#x}"),
            }
            at += 1 + usize::from(skip);
        }
    }

    #[test]
    fn groups_and_the_named_stations_come_in() {
        let station = |number: u8| Mac([2, 0, 0, 0, number, 9]);
        let named: Vec<Mac> = (1..=200).map(station).collect();
        let program = stations(&named);
        let to = |mac: Mac| [&mac.0[..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat();
        for inside in named.iter().copied().chain([Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1])]) {
            assert!(takes(&program, &to(inside)), "{inside}");
        }
        for outside in [station(0), station(201), Mac([2, 0, 0, 0, 1, 8]), Mac([6, 0, 0, 0, 1, 9])] {
            assert!(!takes(&program, &to(outside)), "{outside}");
            assert!(takes(&everything(), &to(outside)));
        }
        assert!(takes(&stations(&[]), &to(Mac::BROADCAST)) && !takes(&stations(&[]), &to(station(1))));
    }

    #[test]
    fn the_longest_program_fits_the_kernel() {
        let most = (0..PACKET_STATIONS as u32).map(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            Mac([2, 0, a, b, c, d])
        });
        assert!(stations(&most.collect::<Vec<_>>()).len() <= 4096);
    }
}
