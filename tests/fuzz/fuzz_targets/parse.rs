//! Any bytes into the parser: a verdict, never a panic, and offsets that lie inside the frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| millrace_tests::anything::parse(bytes));
