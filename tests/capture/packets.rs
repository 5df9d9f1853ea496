//! The packets of a case, with their times, as captures.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_control::cluster::{NodeName, StationMac};
use millrace_engine::packet::Mac;
use millrace_engine::port::pcap::Recording;

use super::objects::Objects;
use crate::scenario::given::number;
use crate::scenario::packet_text::{Link, frame_of};

pub(super) const UPLINK_MAC: Mac = Mac([2, 0, 0x5e, 0, 0x53, 1]);
pub(super) const HOST_MAC: Mac = Mac([2, 0, 0x5e, 0, 0x53, 3]);
const PEER_MAC: Mac = Mac([2, 0, 0x5e, 0, 0x53, 2]);
const ROUTER_MAC: Mac = Mac([2, 0, 0x5e, 0, 0x53, 0xfe]);
const UPLINK: &str = "eth1";
/// When the first packet arrives: since 1970.
const START: Duration = Duration::from_secs(1_700_000_000);
/// From one packet to the next.
const STEP: Duration = Duration::from_micros(100);

/// Packets in order.
#[derive(Debug)]
pub(super) struct Packets {
    arrived: Vec<(String, Duration, Vec<u8>)>,
    time: Duration,
    together: bool,
}

impl Packets {
    pub(super) fn new() -> Self {
        Self { arrived: Vec::new(), time: Duration::ZERO, together: false }
    }

    /// When the next packet would arrive, after the first.
    pub(super) fn time(&self) -> Duration {
        self.time
    }

    pub(super) fn together(&self) -> bool {
        self.together
    }

    /// Takes a line of `when` in.
    pub(super) fn take(&mut self, line: &str, objects: &Objects) -> Result<(), String> {
        if let Some(time) = line.strip_prefix("time passes ") {
            self.time += match time.split_once(' ') {
                Some((count, "s")) => Duration::from_secs(number(count)?),
                Some((count, "ms")) => Duration::from_millis(number(count)?),
                _ => return Err("time is N s or N ms".to_owned()),
            };
            return Ok(());
        }
        let (who, packet) = line.split_once(" sends ").ok_or("is not known under when")?;
        let (packet, with_next) = packet.strip_suffix(" ; with the next").map_or((packet, false), |rest| (rest, true));
        let (packet, damage) = damage(packet)?;
        let packet = packet.as_str();
        let (port, mut bytes) = match who {
            "underlay" => (UPLINK.to_owned(), from_underlay(packet, objects)?),
            who => {
                let sender = objects.sender_called(who).ok_or(format!("{who} sends nothing here"))?;
                let link = Link { source: sender.mac, destination: sender.to };
                (sender.port, frame_of(packet, link, |name| objects.station(name))?.bytes)
            }
        };
        for (at, value) in damage {
            *bytes.get_mut(at).ok_or(format!("the frame has no byte {at}"))? = value;
        }
        self.arrived.push((port, self.time, bytes));
        self.together |= with_next;
        self.time += if with_next { Duration::ZERO } else { STEP };
        Ok(())
    }

    /// A capture of each port.
    pub(super) fn captures(&self) -> BTreeMap<String, Vec<u8>> {
        let mut ports: BTreeMap<&str, (Sink, Recording)> = BTreeMap::new();
        for (port, time, bytes) in &self.arrived {
            let sink = Sink::default();
            let (_, recording) = ports.entry(port).or_insert_with(|| (sink.clone(), Recording::new(sink)));
            let time = (START + *time).as_nanos() as u64;
            assert!(recording.write(time, std::iter::once(bytes.as_slice()), None), "memory takes it");
        }
        ports.into_iter().map(|(port, (sink, _))| (port.to_owned(), sink.bytes())).collect()
    }
}

/// Takes `byte N HEX` from behind semicolons: what is to stand there once the frame is built.
fn damage(packet: &str) -> Result<(String, Vec<(usize, u8)>), String> {
    let (mut parts, mut damage) = (Vec::new(), Vec::new());
    for part in packet.split(" ; ") {
        match part.split(' ').collect::<Vec<_>>().as_slice() {
            ["byte", at, value] => {
                let value = u8::from_str_radix(value, 16).map_err(|_| format!("{value:?} is no byte"))?;
                damage.push((number(at)?, value));
            }
            _ => parts.push(part),
        }
    }
    Ok((parts.join(" ; "), damage))
}

fn from_underlay(packet: &str, objects: &Objects) -> Result<Vec<u8>, String> {
    let is_tunnelled = packet.contains("vxlan vni ");
    let own = StationMac::of_node(&NodeName::new("a").map_err(|error| error.to_string())?).mac();
    let link = if is_tunnelled {
        Link { source: PEER_MAC, destination: own }
    } else {
        Link { source: ROUTER_MAC, destination: UPLINK_MAC }
    };
    let mut bytes = frame_of(packet, link, |name| objects.station(name))?.bytes;
    if is_tunnelled && let Some((outer, _)) = bytes.split_at_mut_checked(12) {
        outer[..6].copy_from_slice(&UPLINK_MAC.0);
        outer[6..].copy_from_slice(&PEER_MAC.0);
    }
    Ok(bytes)
}

#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
