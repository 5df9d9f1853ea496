//! On what a run was made: processor, kernel, and versions of what was compared.

use std::process::Command;

/// Lines of Markdown about the machine.
pub(crate) fn describe() -> String {
    let processor = processor();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut text = format!(
        "- processor: {processor}, {processors} of them\n- kernel: {}\n- load before the run: {}\n",
        kernel.trim(),
        load.trim()
    );
    for (name, arguments) in
        [("ovs-vswitchd", "--version"), ("nft", "--version"), ("iptables", "--version"), ("ip", "-V")]
    {
        let said = Command::new(name).arg(arguments).output().map(|output| output.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        text += &format!("- {name}: {}\n", said.lines().next().unwrap_or("not installed"));
    }
    text
}

/// Name for the directory of results.
pub(crate) fn short_name() -> String {
    let words = processor().to_lowercase();
    let plain = words.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { ' ' });
    let plain: String = plain.collect();
    let kept: Vec<_> = plain.split_whitespace().take(3).collect();
    format!("{}-{}", kept.join("-"), std::thread::available_parallelism().map_or(0, usize::from))
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
