//! The record of what is attached, kept over restarts of the agent in one JSON file.
//!
//! A change is in the file before the call that made it returns: the whole file is written beside the old one,
//! synchronised, renamed over it, and the directory synchronised. With the at most 1,024 pods of a node that is
//! some 300 KiB. A file that cannot be read is moved aside and reported, never overwritten: the agent starts
//! with an empty record and finds its interfaces in the pods' namespaces again.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_cni::protocol::{Bandwidth, PortMapping};
use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use serde::{Deserialize, Serialize};

use crate::api::model::Problem;
use crate::kernel::{GATEWAY_IPV4, GATEWAY_IPV6};

/// Version of the file's layout.
const LAYOUT_VERSION: u32 = 1;

/// Longest file that is read.
const FILE_BYTES: u64 = 64 << 20;

/// What names an attachment on a node. The network's name is not part of it: an interface name is unique in a
/// container whatever the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The runtime's identifier of the container or pod sandbox.
    pub container_id: String,
    /// The interface's name in the container.
    pub interface: String,
}

/// A network namespace: a path may be reused, the inode tells whether it still means the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNamespace {
    /// Where the runtime has it bound.
    pub path: PathBuf,
    /// Its inode on nsfs.
    pub inode: u64,
}

/// A pod, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReference {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, which tells it from an earlier pod of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// The pod's port on the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedPort {
    /// Number of the port.
    #[serde(with = "port_number")]
    pub index: PortIndex,
    /// MAC address of the pod's interface.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// MTU of the pod's interface.
    pub mtu_bytes: u32,
    /// Addresses of the pod's interface.
    pub addresses: Vec<IpNet>,
    /// The network it is plugged into, instead of the pods' segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<AttachedNetwork>,
    /// What the pod's interface is made of.
    #[serde(default, skip_serializing_if = "PodDevice::is_tap")]
    pub device: PodDevice,
    /// What the runtime had for the capabilities.
    #[serde(default, skip_serializing_if = "RuntimeConfig::is_empty")]
    pub runtime: RuntimeConfig,
}

impl AttachedPort {
    /// What goes by routers, each prefix with its router: everything, or what a further interface leads to. A network may
    /// have no router of a family.
    #[must_use]
    pub fn routes(&self) -> Vec<(IpNet, IpAddr)> {
        let network = self.network.as_ref();
        let of_family = |address: &IpNet| {
            let (default, ours): (IpNet, IpAddr) = match address {
                IpNet::V4(_) => (Ipv4Net::default().into(), GATEWAY_IPV4.into()),
                IpNet::V6(_) => (Ipv6Net::default().into(), GATEWAY_IPV6.into()),
            };
            let same_family = |gateway: &IpAddr| gateway.is_ipv4() == ours.is_ipv4();
            let gateway = match network {
                Some(network) if !network.routed => network.gateways.iter().copied().find(same_family),
                _ => Some(ours),
            };
            let destinations = match network.and_then(|network| network.destinations.as_ref()) {
                None => vec![default],
                Some(some) => some.iter().copied().filter(|prefix| same_family(&prefix.addr())).collect(),
            };
            gateway.into_iter().flat_map(move |gateway| destinations.clone().into_iter().map(move |to| (to, gateway)))
        };
        let mut routes: Vec<(IpNet, IpAddr)> = self.addresses.iter().flat_map(of_family).collect();
        routes.sort_unstable();
        routes.dedup();
        routes
    }
}

/// What a runtime asks for by capabilities (`runtimeConfig`) and that lasts as long as the attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeConfig {
    /// Ports of the host that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How much the pod may receive and send.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

impl RuntimeConfig {
    fn is_empty(&self) -> bool {
        *self == RuntimeConfig::default()
    }
}

/// What a pod's interface is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodDevice {
    /// A TAP of the switch.
    #[default]
    Tap,
    /// One end of a veth pair, whose other end the switch listens to.
    Veth,
}

impl PodDevice {
    /// As the kernel calls such an interface (`IFLA_INFO_KIND`).
    #[must_use]
    pub const fn kernel_kind(self) -> &'static str {
        match self {
            PodDevice::Tap => "tun",
            PodDevice::Veth => "veth",
        }
    }

    fn is_tap(&self) -> bool {
        *self == PodDevice::Tap
    }
}

/// A pod's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedNetwork {
    /// Name of the `Network` object.
    pub name: String,
    /// Its routers, of families that the pod has an address of; none where the switch is the router.
    pub gateways: Vec<IpAddr>,
    /// Whether the switch is its router.
    #[serde(default, skip_serializing_if = "is_false")]
    pub routed: bool,
    /// Of a further interface, what is reached by its router; a first interface has the default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<IpNet>>,
}

impl AttachedNetwork {
    /// Whether the interface is one beside the pod's first.
    #[must_use]
    pub fn is_further(&self) -> bool {
        self.destinations.is_some()
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What names it.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Name of the network in the CNI configuration.
    pub network: String,
    /// Where the interface is.
    pub namespace: NetworkNamespace,
    /// The pod, if the runtime is a Kubernetes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    /// Of a further interface, the first one of its container, with which it comes and goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub further_to: Option<String>,
    /// The port; `None` while ADD is at work, and after it was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<AttachedPort>,
}

const fn is_false(value: &bool) -> bool {
    !*value
}

impl Attachment {
    /// Whether it is an interface beside this first one.
    #[must_use]
    pub fn is_further_to(&self, first: &AttachmentKey) -> bool {
        self.key.container_id == first.container_id && self.further_to.as_ref() == Some(&first.interface)
    }
}

#[derive(Serialize, Deserialize)]
struct Layout<Records> {
    version: u32,
    attachments: Records,
}

type Records = BTreeMap<AttachmentKey, Attachment>;

/// All attachments of this node.
#[derive(Debug)]
pub struct Attachments {
    path: PathBuf,
    records: Mutex<Records>,
}

impl NetworkNamespace {
    /// The namespace bound at `path`.
    ///
    /// # Errors
    /// When there is nothing at `path`.
    pub fn at(path: &Path) -> io::Result<NetworkNamespace> {
        Ok(NetworkNamespace { path: path.to_owned(), inode: fs::metadata(path)?.ino() })
    }

    /// Whether its path still leads to it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }
}

impl Attachments {
    /// Reads the record at `path`. No file is an empty record; a file that makes no sense is moved aside, and the
    /// problem returned says where to.
    ///
    /// # Errors
    /// When the file is there but cannot be read or moved: starting without it would lose it.
    pub fn load(path: &Path) -> io::Result<(Attachments, Option<Problem>)> {
        // What an agent that died had half written.
        let _ = fs::remove_file(beside(path));
        let (records, problem) = match read(path) {
            Ok(records) => (records, None),
            Err(ReadError::Absent) => (Records::new(), None),
            Err(ReadError::Io(error)) => return Err(error),
            Err(ReadError::Garbage(reason)) => {
                let aside = free_name(path);
                fs::rename(path, &aside)?;
                let message =
                    format!("the record of attachments is unusable and was moved to {}: {reason}", aside.display());
                (Records::new(), Some(Problem { file: path.display().to_string(), message, ..Default::default() }))
            }
        };
        Ok((Attachments { path: path.to_owned(), records: Mutex::new(records) }, problem))
    }

    /// The record with this key.
    #[must_use]
    pub fn get(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.lock().get(key).cloned()
    }

    /// All records, in order of their keys.
    #[must_use]
    pub fn all(&self) -> Vec<Attachment> {
        self.lock().values().cloned().collect()
    }

    /// Adds or replaces a record; it is on disk when this returns.
    ///
    /// # Errors
    /// When another attachment has the same port, or the file cannot be written; the record is then as before.
    pub fn put(&self, attachment: Attachment) -> io::Result<()> {
        let mut records = self.lock();
        let key = attachment.key.clone();
        if let Some(other) = same_port(&records, &attachment) {
            return Err(io::Error::other(format!("container {} has the same port", other.key.container_id)));
        }
        let former = records.insert(key.clone(), attachment);
        write(&self.path, &records).inspect_err(|_| {
            match former {
                Some(former) => records.insert(key, former),
                None => records.remove(&key),
            };
        })
    }

    /// Removes a record, if it is there; it is off the disk when this returns.
    ///
    /// # Errors
    /// When the file cannot be written; the record is then as before.
    pub fn remove(&self, key: &AttachmentKey) -> io::Result<()> {
        let mut records = self.lock();
        let Some(former) = records.remove(key) else { return Ok(()) };
        write(&self.path, &records).inspect_err(|_| {
            records.insert(key.clone(), former);
        })
    }

    /// Changes happen under the lock and are undone on error, so a poisoned lock still guards a whole record.
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another attachment with the port of this one. [`check`] would refuse the file that has both.
fn same_port<'records>(records: &'records Records, attachment: &Attachment) -> Option<&'records Attachment> {
    let number = |record: &Attachment| record.port.as_ref().map(|port| port.index);
    let wanted = number(attachment)?;
    records.values().find(|other| other.key != attachment.key && number(other) == Some(wanted))
}

enum ReadError {
    Absent,
    Io(io::Error),
    Garbage(String),
}

fn read(path: &Path) -> Result<Records, ReadError> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => ReadError::Absent,
        _ => ReadError::Io(error),
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES {
        return Err(ReadError::Garbage("it is no file of at most 64 MiB".into()));
    }
    let text = fs::read(path).map_err(failed)?;
    let layout: Layout<serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| ReadError::Garbage(error.to_string()))?;
    if layout.version != LAYOUT_VERSION {
        return Err(ReadError::Garbage(format!("layout version {} is not {LAYOUT_VERSION}", layout.version)));
    }
    let list: Vec<Attachment> =
        serde_json::from_value(layout.attachments).map_err(|error| ReadError::Garbage(error.to_string()))?;
    check(list).map_err(ReadError::Garbage)
}

/// A record that names a port or an attachment twice would make two pods one.
fn check(list: Vec<Attachment>) -> Result<Records, String> {
    let mut records = Records::new();
    let mut ports = HashSet::new();
    for attachment in list {
        if let Some(port) = &attachment.port {
            let number = port.index.0;
            if usize::from(number) >= limits::PORTS || !ports.insert(number) {
                return Err(format!("port {number} is out of range or there twice"));
            }
        }
        if let Some(twice) = records.insert(attachment.key.clone(), attachment) {
            return Err(format!(
                "container {} interface {} is there twice",
                twice.key.container_id, twice.key.interface
            ));
        }
    }
    Ok(records)
}

fn write(path: &Path, records: &Records) -> io::Result<()> {
    let layout = Layout { version: LAYOUT_VERSION, attachments: records.values().collect::<Vec<_>>() };
    let mut text = serde_json::to_vec_pretty(&layout)?;
    text.push(b'\n');
    let beside = beside(path);
    put_in_place(&text, &beside, path).inspect_err(|_| {
        // On a full disk it would only keep room from others.
        let _ = fs::remove_file(&beside);
    })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Where the record is written before it takes the place of the old one.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

fn put_in_place(text: &[u8], beside: &Path, path: &Path) -> io::Result<()> {
    let mut file = File::create(beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(beside, path)
}

/// A name beside `path` that nothing has; the last one is reused when an operator let twenty pile up.
fn free_name(path: &Path) -> PathBuf {
    let name = |number| path.with_extension(format!("json.unusable.{number}"));
    (1..20).map(name).find(|candidate| !candidate.exists()).unwrap_or_else(|| name(20))
}

mod mac_text {
    use super::{Deserialize, Mac};
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(super) fn deserialize<'input, D: Deserializer<'input>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod port_number {
    use super::{Deserialize, PortIndex};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(port: &PortIndex, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(port.0)
    }

    pub(super) fn deserialize<'input, D: Deserializer<'input>>(deserializer: D) -> Result<PortIndex, D::Error> {
        u16::deserialize(deserializer).map(PortIndex)
    }
}
