//! Links: what there is, and changes to one.

use std::fs::File;
use std::os::fd::AsRawFd;

use millrace_engine::packet::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State};

use super::{KernelError, NamespaceHandle, Netlink, unless_absent};

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; zero where it has none.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it was set up.
    pub up: bool,
    /// Whether it has a carrier: for a TAP, whether somebody holds a queue.
    pub carrier: bool,
    /// Whether the kernel counts it as operational; devices that cannot tell count as long as they have a carrier.
    pub operational: bool,
    /// Largest GSO unit the stack builds for IPv6, and for IPv4 where the next field is absent.
    pub gso_max_size: Option<u32>,
    /// Largest GSO unit the stack builds for IPv4.
    pub gso_ipv4_max_size: Option<u32>,
    /// Number of the bridge or bond it belongs to.
    pub controller: Option<u32>,
    /// `veth`, `tun`, `vxlan`, `bridge`; none for hardware.
    pub kind: Option<String>,
}

impl Link {
    pub(super) fn read(message: &LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: Mac::ZERO,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            operational: false,
            gso_max_size: None,
            gso_ipv4_max_size: None,
            controller: None,
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = Mac::read(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::OperState(state) => {
                    link.operational = *state == State::Up || (*state == State::Unknown && link.carrier);
                }
                LinkAttribute::GsoMaxSize(bytes) => link.gso_max_size = Some(*bytes),
                LinkAttribute::GsoIpv4MaxSize(bytes) => link.gso_ipv4_max_size = Some(*bytes),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// What to change on a link; what is `None` stays. Everything goes in one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Set up or down.
    pub up: Option<bool>,
    /// Whether it takes frames for every MAC address.
    pub promiscuous: Option<bool>,
    /// Whether its kernel asks for neighbours there and answers who asks (ARP and neighbour discovery).
    pub resolves: Option<bool>,
    /// MAC address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Largest GSO unit, for both IP versions: `limits::POD_GSO_BYTES` for pods.
    pub gso_max_size: Option<u32>,
    /// Most segments in a GSO unit.
    pub gso_max_segments: Option<u32>,
    /// Number of the bridge it joins; zero takes it out of its bridge.
    pub controller: Option<u32>,
    /// New name; the link must be down, or a kernel of 6.2 or later.
    pub name: Option<String>,
}

impl LinkChange {
    /// Only sets the link up.
    #[must_use]
    pub fn up() -> Self {
        Self { up: Some(true), ..Self::default() }
    }

    fn message(&self, index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let silent = self.resolves.map(|resolves| !resolves);
        for (flag, wanted) in
            [(LinkFlags::Up, self.up), (LinkFlags::Promisc, self.promiscuous), (LinkFlags::Noarp, silent)]
        {
            let Some(on) = wanted else { continue };
            message.header.change_mask |= flag;
            if on {
                message.header.flags |= flag;
            }
        }
        let attributes = [
            self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())),
            self.mtu.map(LinkAttribute::Mtu),
            self.gso_max_size.map(LinkAttribute::GsoMaxSize),
            self.gso_max_segments.map(LinkAttribute::GsoMaxSegs),
            self.gso_max_size.map(LinkAttribute::GsoIpv4MaxSize),
            self.controller.map(LinkAttribute::Controller),
            self.name.clone().map(LinkAttribute::IfName),
        ];
        message.attributes = attributes.into_iter().flatten().collect();
        message
    }
}

/// What a link has counted since it was made, as seen by its own namespace: a pod's `transmitted` is what it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStatistics {
    /// Packets received; a GSO unit counts once.
    pub received_packets: u64,
    /// Packets transmitted; a GSO unit counts once.
    pub transmitted_packets: u64,
    /// Packets lost on receipt.
    pub receive_dropped: u64,
    /// Packets lost on transmission: for a TAP, those its ring of 1,000 had no room for.
    pub transmit_dropped: u64,
}

impl Netlink {
    /// What the link `name` has counted.
    ///
    /// # Errors
    /// If there is no such link, or what the kernel said.
    pub fn link_statistics(&mut self, name: &str) -> Result<LinkStatistics, KernelError> {
        let absent = || KernelError::NoLink(name.to_owned());
        let answer = self.get_link(name)?;
        let attributes = answer.iter().find_map(|item| match item {
            RouteNetlinkMessage::NewLink(link) => Some(link.attributes.iter()),
            _ => None,
        });
        let statistics = attributes.ok_or_else(absent)?.find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counts) => Some(LinkStatistics {
                received_packets: counts.rx_packets,
                transmitted_packets: counts.tx_packets,
                receive_dropped: counts.rx_dropped,
                transmit_dropped: counts.tx_dropped,
            }),
            _ => None,
        });
        Ok(statistics.unwrap_or_default())
    }

    /// The link `name`, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        Ok(self.get_link(name)?.iter().find_map(read))
    }

    /// The kernel's answer about the link `name`; nothing if there is none.
    fn get_link(&mut self, name: &str) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::GetLink(message), 0, || format!("look up link {name}")) {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    /// The link `name`, which must exist.
    ///
    /// # Errors
    /// [`KernelError::NoLink`] if it does not, or what the kernel said.
    pub fn existing_link(&mut self, name: &str) -> Result<Link, KernelError> {
        self.link(name)?.ok_or_else(|| KernelError::NoLink(name.to_owned()))
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let items = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || "list the links".to_owned())?;
        Ok(items.iter().filter_map(read).collect())
    }

    /// Changes the link `name`.
    ///
    /// # Errors
    /// If there is no such link, or the kernel refused.
    pub fn change_link(&mut self, name: &str, change: &LinkChange) -> Result<(), KernelError> {
        let index = self.existing_link(name)?.index;
        let message = RouteNetlinkMessage::SetLink(change.message(index));
        self.request(message, 0, || format!("change link {name} ({change:?})")).map(|_| ())
    }

    /// Moves the link `name` to another namespace.
    ///
    /// # Errors
    /// If either is absent, or the kernel refused.
    pub fn move_link(&mut self, name: &str, target: &NamespaceHandle) -> Result<(), KernelError> {
        let index = self.existing_link(name)?.index;
        let file = namespace_file(target)?;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(file.as_raw_fd()));
        let attempt = || format!("move link {name} to {}", target.path().display());
        self.request(RouteNetlinkMessage::SetLink(message), 0, attempt).map(|_| ())
    }

    /// Deletes the link `name`. False if there was none.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, KernelError> {
        let Some(link) = self.link(name)? else { return Ok(false) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let deleted = self.request(RouteNetlinkMessage::DelLink(message), 0, || format!("delete link {name}"));
        unless_absent(deleted.map(|_| ()))
    }
}

/// The namespace's file, for an attribute that names it by descriptor.
pub(super) fn namespace_file(namespace: &NamespaceHandle) -> Result<File, KernelError> {
    let path = namespace.path();
    File::open(path).map_err(KernelError::file(format!("open network namespace {}", path.display())))
}

fn read(message: &RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::read(link)),
        _ => None,
    }
}
