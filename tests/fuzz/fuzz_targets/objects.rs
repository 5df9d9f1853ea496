#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (millrace_tests::fuzzing::target("objects").run)(bytes));
