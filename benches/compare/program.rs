//! Programs of others (`ip`, `nft`, `ovs-vsctl`) run to their end, with what they said when they fail.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use millrace_engine::port::namespace::NamespaceHandle;

/// Runs the words of `line` as a command in `namespace` and returns what it printed.
pub(crate) fn run(namespace: &NamespaceHandle, line: &str) -> anyhow::Result<String> {
    run_with(namespace, line, "")
}

/// The same with `input` as its standard input.
pub(crate) fn run_with(namespace: &NamespaceHandle, line: &str, input: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words);
    finish(namespace, command, input).with_context(|| line.to_owned())
}

/// Runs a command that is put together already.
pub(crate) fn finish(namespace: &NamespaceHandle, mut command: Command, input: &str) -> anyhow::Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.enter(|| command.spawn())??;
    let stdin = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        // A thread of its own: both sides may wait for room in a pipe.
        scope.spawn(move || {
            // A program that does not read all of it says why itself.
            let mut stdin = stdin;
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output()
    })?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name can be found.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}
