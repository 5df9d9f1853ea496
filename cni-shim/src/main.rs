//! The `millrace-cni` program; all of it is in the library, so that `millrace` can be installed under this name too.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    millrace_cni::main()
}
