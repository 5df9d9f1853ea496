//! The `millrace` program; see `cli/` for its commands.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    millrace_control::main()
}
