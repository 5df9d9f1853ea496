//! `millrace support-bundle`: a directory by which packets of this node can be explained somewhere else.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use millrace_engine::port::pcap::Recording;
use serde_json::Value;

use super::{Output, capture};
use crate::api::client::Client;
use crate::api::model::CaptureRequest;
use crate::store::{Located, Object};

/// What `millrace show` tells, by file name and path.
const SHOWN: [(&str, &str); 13] = [
    ("ports", "/v1/show/ports"),
    ("workers", "/v1/show/workers"),
    ("routes", "/v1/show/routes"),
    ("services", "/v1/show/services"),
    ("neighbours", "/v1/show/neighbours"),
    ("fdb", "/v1/show/fdb"),
    ("ipam", "/v1/show/ipam"),
    ("drops", "/v1/show/drops"),
    ("receipts", "/v1/show/receipts"),
    ("status", "/v1/show/status"),
    ("policies", "/v1/show/policies"),
    ("flows", "/v1/show/flows?limit=100000"),
    ("connections", "/v1/show/connections?limit=100000"),
];

/// Frames of drops kept at most.
const DROPS: u64 = 10_000;

/// Options of `millrace support-bundle`.
#[derive(Debug, Args)]
#[command(
    after_help = "Secrets are no part of a bundle: the agent never watches them. Names, labels, addresses and the \
    first bytes of dropped packets are. The directory is readable by its owner alone."
)]
pub(super) struct SupportOptions {
    /// Directory to make; it must not be there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// How long to capture dropped packets
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drops_for: u64,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(options: &SupportOptions) -> anyhow::Result<()> {
    let client = options.output.client();
    let support = client.support()?;
    let directory = &options.directory;
    let make = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
    for path in [directory.clone(), directory.join("objects"), directory.join("show")] {
        make(&path).with_context(|| format!("could not make {}", path.display()))?;
    }
    for value in &support.objects {
        let object = Object::read(Located::from(value), None).context("the agent told an object without a name")?;
        write(&directory.join("objects").join(object.key.file_name()), value)?;
    }
    write(&directory.join("state.json"), &serde_json::to_value(&support.state)?)?;
    for (name, path) in SHOWN {
        write(&directory.join("show").join(format!("{name}.json")), &client.document::<Value>(path)?)?;
    }
    let dropped = drops(&client, &directory.join("drops.pcapng"), options.drops_for)?;
    let (objects, place) = (support.objects.len(), directory.display());
    writeln!(io::stderr(), "{objects} objects, {dropped} frames of drops in {place}.")?;
    Ok(())
}

fn write(path: &Path, value: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

fn drops(client: &Client, path: &Path, seconds: u64) -> anyhow::Result<u64> {
    let file = File::create(path).with_context(|| format!("could not write {}", path.display()))?;
    let recording = Recording::with_named_interfaces(BufWriter::new(file));
    if seconds > 0 {
        let drops = Some(Vec::new());
        let request = CaptureRequest { drops, packets: DROPS, bytes: 64 << 20, seconds, ..CaptureRequest::default() };
        let begun = client.begin_capture(&request)?;
        capture::follow(client, begun.capture, |frame| capture::write(&recording, frame))?;
    }
    recording.finish().with_context(|| format!("could not write {}", path.display()))
}
