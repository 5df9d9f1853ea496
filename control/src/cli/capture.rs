//! `millrace capture`: packets of pods, ports or drop reasons into a pcapng file, as they came and as they left.
//!
//! Each port is an interface of the file. A packet stands there when it came in, with verdict, stages, objects and rewrites
//! as its comment, and for each frame that left or dropped because of it; `WORKER.NUMBER` at the head of the comments
//! ties them together. The file is whole after each batch, so an interrupted capture can be read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use millrace_engine::packet::parse::protocol;
use millrace_engine::port::pcap::{RecordedFrame, Recording};

use super::{Format, Output};
use crate::api::client::{ApiError, Client};
use crate::api::model::{CaptureRequest, CapturedReport, FrameEvent, from_hexadecimal};

/// Which packets; shared with `millrace trace` of real packets.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Selection {
    /// A pod of this node by whose port packets come or leave; may be given several times
    #[arg(long = "pod", value_name = "NAMESPACE/POD")]
    pub(super) pods: Vec<String>,
    /// A port by which they come or leave, named as in `show ports`; may be given several times
    #[arg(long = "port", value_name = "NAME")]
    pub(super) ports: Vec<String>,
    /// Only packets that drop; with =REASON,... for one of these reasons
    #[arg(long, value_name = "REASON,...", num_args = 0..=1, require_equals = true, value_delimiter = ',')]
    pub(super) dropped: Option<Vec<String>>,
    /// Their protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    pub(super) protocol: Option<u8>,
    /// An address that is their source or destination as they come in; may be given twice
    #[arg(long = "address", value_name = "ADDRESS")]
    pub(super) addresses: Vec<IpAddr>,
    /// A port of tcp, udp or sctp that is their source or destination; may be given twice
    #[arg(long = "transport-port", value_name = "NUMBER")]
    pub(super) transport_ports: Vec<u16>,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "NUMBER", default_value_t = 1_000)]
    pub(super) packets: u64,
    /// End after so many bytes of frames
    #[arg(long, value_name = "NUMBER", default_value_t = 64 << 20)]
    pub(super) bytes: u64,
    /// End after so many seconds; at most 3,600
    #[arg(long, value_name = "NUMBER", default_value_t = 60)]
    pub(super) seconds: u64,
}

impl Selection {
    /// Whether it says which packets.
    pub(super) fn is_given(&self) -> bool {
        !self.pods.is_empty() || !self.ports.is_empty() || self.dropped.is_some()
    }

    pub(super) fn request(&self) -> CaptureRequest {
        CaptureRequest {
            ports: self.pods.iter().chain(&self.ports).cloned().collect(),
            drops: self.dropped.clone(),
            protocol: self.protocol,
            addresses: self.addresses.clone(),
            transport_ports: self.transport_ports.clone(),
            packets: self.packets,
            bytes: self.bytes,
            seconds: self.seconds,
        }
    }
}

fn protocol_number(text: &str) -> Result<u8, &'static str> {
    match text {
        "tcp" => Ok(protocol::TCP),
        "udp" => Ok(protocol::UDP),
        "sctp" => Ok(protocol::SCTP),
        "icmp" => Ok(protocol::ICMP),
        "icmpv6" => Ok(protocol::ICMPV6),
        number => number.parse().map_err(|_| "the protocol is tcp, udp, sctp, icmp, icmpv6 or a number"),
    }
}

/// Options of `millrace capture`.
#[derive(Debug, Args)]
#[command(after_help = "One capture runs at a time at a node. Frames are kept up to 2,048 bytes.")]
pub(super) struct CaptureOptions {
    #[command(flatten)]
    selection: Selection,
    /// The pcapng file to write; - for standard output
    #[arg(short = 'w', long, value_name = "FILE")]
    write: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// How a capture ended.
#[derive(Debug, Default)]
pub(super) struct Ending {
    pub(super) frames: u64,
    pub(super) lost: u64,
    pub(super) reason: String,
}

pub(super) fn run(options: &CaptureOptions) -> anyhow::Result<()> {
    if !options.selection.is_given() {
        anyhow::bail!("say which packets: --pod, --port or --dropped");
    }
    let client = options.output.client();
    // The agent is asked first: a file is not made for a capture that does not begin.
    let begun = client.begin_capture(&options.selection.request())?;
    let recording = create(&options.write)?;
    let ending = follow(&client, begun.capture, |frame| {
        write(&recording, frame)?;
        recording.flush().with_context(|| format!("could not write {}", options.write.display()))
    })?;
    recording.finish().with_context(|| format!("could not write {}", options.write.display()))?;
    let Ending { frames, lost, reason } = ending;
    match options.output.format {
        Format::Table => writeln!(io::stderr(), "{frames} frames captured, {lost} lost: {reason}.")?,
        Format::Json => {
            writeln!(io::stderr(), "{}", serde_json::json!({ "frames": frames, "lost": lost, "ended": reason }))?;
        }
    }
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<Recording> {
    if path == Path::new("-") {
        return Ok(Recording::with_named_interfaces(io::stdout()));
    }
    let file = File::create(path).with_context(|| format!("could not write {}", path.display()))?;
    Ok(Recording::with_named_interfaces(BufWriter::new(file)))
}

/// Writes one frame with what is said of it.
pub(super) fn write(recording: &Recording, frame: &CapturedReport) -> anyhow::Result<()> {
    let bytes = from_hexadecimal(&frame.bytes).context("the agent's answer holds a frame that is not hexadecimal")?;
    recording.write_frame(&RecordedFrame {
        interface: &frame.port,
        outbound: frame.event == FrameEvent::Left,
        time: frame.time_nanoseconds,
        bytes: &bytes,
        length: frame.length_bytes as usize,
        comment: &frame.comment,
    });
    Ok(())
}

/// Fetches what a capture brings until it ends, and tells each frame; ends it when a frame cannot be told.
pub(super) fn follow(
    client: &Client,
    capture: u64,
    mut tell: impl FnMut(&CapturedReport) -> anyhow::Result<()>,
) -> anyhow::Result<Ending> {
    let mut ending = Ending::default();
    loop {
        let batch = match client.next_captured(capture) {
            Ok(batch) => batch,
            Err(ApiError::Refused { message, .. }) => return Ok(Ending { reason: message, ..ending }),
            Err(error) => return Err(error.into()),
        };
        ending.lost += batch.lost;
        for frame in &batch.frames {
            ending.frames += 1;
            if let Err(error) = tell(frame) {
                // The agent ends it by itself, only later.
                let _ = client.end_capture(capture);
                return Err(error);
            }
        }
        if let Some(reason) = batch.ended {
            return Ok(Ending { reason, ..ending });
        }
    }
}
