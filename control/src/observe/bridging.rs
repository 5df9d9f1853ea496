//! `Bridge` and `Port` of `millrace.dev/v1alpha1`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use millrace_engine::limits;
use millrace_engine::tables::{MoveLimit, StormLimits, TagProtocol, Vni};
use serde::Deserialize;

use super::ours::{field, spec};
use super::schema;
use crate::cluster::{
    BridgeName, BridgePortRecord, BridgeRecord, DEFAULT_VLAN, DeviceKind, InterfaceName, Membership, MirrorRecord,
    NodeName, PortDevice, PortName, PortVlans, StationMac, StationPlace, StationRecord, VlanId,
};
use crate::store::{FieldError, Object};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BridgeSpec {
    /// Absent: every node.
    node: Option<String>,
    #[serde(default)]
    vnis: Vec<VniSpec>,
    #[serde(default)]
    remotes: Vec<String>,
    ageing_seconds: Option<u32>,
    move_limit: Option<MoveLimitSpec>,
    #[serde(default)]
    stations: Vec<StationSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VniSpec {
    vlan: Option<u16>,
    vni: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MoveLimitSpec {
    moves: u8,
    within_seconds: u32,
    hold_seconds: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StationSpec {
    mac: String,
    vlan: Option<u16>,
    port: Option<String>,
    remote: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PortSpec {
    /// Absent: every node.
    node: Option<String>,
    tap: Option<DeviceSpec>,
    af_xdp: Option<DeviceSpec>,
    packet: Option<DeviceSpec>,
    mtu: Option<u32>,
    bridge: Option<String>,
    vlan: Option<u16>,
    trunk: Option<Vec<u16>>,
    native_vlan: Option<u16>,
    service_vlan: Option<u16>,
    tag_protocol: Option<TagProtocolSpec>,
    isolated: Option<bool>,
    split_horizon_group: Option<u16>,
    station_limit: Option<u32>,
    storm_limit: Option<StormSpec>,
    mirror: Option<MirrorSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceSpec {
    namespace: Option<String>,
    interface: String,
}

#[derive(Clone, Copy, Deserialize)]
enum TagProtocolSpec {
    #[serde(rename = "802.1Q")]
    Customer,
    #[serde(rename = "802.1ad")]
    Service,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StormSpec {
    broadcast: Option<u32>,
    multicast: Option<u32>,
    unknown_unicast: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorSpec {
    to: String,
    ingress: Option<bool>,
    egress: Option<bool>,
}

/// Schema of a `Bridge`'s `spec`.
pub(super) fn bridge_schema() -> serde_json::Value {
    schema::of::<BridgeSpec>()
}

/// Schema of a `Port`'s `spec`.
pub(super) fn port_schema() -> serde_json::Value {
    schema::of::<PortSpec>()
}

pub(super) fn bridge(object: &Object) -> Result<BridgeRecord, FieldError> {
    let spec: BridgeSpec = spec(object)?;
    let content = &object.content;
    let vlan = |number: Option<u16>| number.map_or(Ok(DEFAULT_VLAN), VlanId::new);
    let mut vnis = BTreeMap::new();
    for entry in &spec.vnis {
        let number = field(content, &["spec", "vnis"], vlan(entry.vlan))?;
        let vni = Vni::new(entry.vni).ok_or_else(|| format!("{} is no VNI: it has 24 bits", entry.vni));
        if vnis.insert(number, field(content, &["spec", "vnis"], vni)?).is_some() {
            return Err(FieldError::at(content, &["spec", "vnis"], format!("VLAN {number} stands twice")));
        }
    }
    let mut remotes = Vec::new();
    for text in &spec.remotes {
        let remote = field(content, &["spec", "remotes"], address(text))?;
        if !remotes.contains(&remote) {
            remotes.push(remote);
        }
    }
    let mut stations = Vec::new();
    for station in &spec.stations {
        let place = match (&station.port, &station.remote) {
            (Some(port), None) => StationPlace::Port(field(content, &["spec", "stations"], PortName::new(port))?),
            (None, Some(remote)) => StationPlace::Remote(field(content, &["spec", "stations"], address(remote))?),
            _ => {
                let message = "each station lives at a `port` or at a `remote`";
                return Err(FieldError::at(content, &["spec", "stations"], message));
            }
        };
        stations.push(StationRecord {
            mac: field(content, &["spec", "stations"], station.mac.parse::<StationMac>())?,
            vlan: field(content, &["spec", "stations"], vlan(station.vlan))?,
            place,
        });
    }
    let seconds = |number: u32| Duration::from_secs(u64::from(number));
    let ageing = match spec.ageing_seconds {
        Some(0) => {
            return Err(FieldError::at(content, &["spec", "ageingSeconds"], "a station must be known for a second"));
        }
        Some(number) => seconds(number),
        None => limits::STATION_AGE,
    };
    Ok(BridgeRecord {
        name: field(content, &["metadata", "name"], BridgeName::new(&object.key.name))?,
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        vnis,
        remotes,
        ageing,
        moves: spec.move_limit.map_or_else(MoveLimit::default, |limit| MoveLimit {
            moves: limit.moves,
            within: seconds(limit.within_seconds),
            hold: seconds(limit.hold_seconds),
        }),
        stations,
    })
}

pub(super) fn port(object: &Object) -> Result<BridgePortRecord, FieldError> {
    let spec: PortSpec = spec(object)?;
    let content = &object.content;
    let mirror = match &spec.mirror {
        None => None,
        Some(mirror) => Some(MirrorRecord {
            to: field(content, &["spec", "mirror", "to"], PortName::new(&mirror.to))?,
            ingress: mirror.ingress.unwrap_or(true),
            egress: mirror.egress.unwrap_or(true),
        }),
    };
    let refused_mtu = spec.mtu.filter(|mtu| !(68..=65_535).contains(mtu));
    if let Some(mtu) = refused_mtu {
        return Err(FieldError::at(content, &["spec", "mtu"], format!("{mtu} is no MTU: 68 to 65535")));
    }
    Ok(BridgePortRecord {
        name: field(content, &["metadata", "name"], PortName::new(&object.key.name))?,
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        device: device(object, &spec)?,
        mtu: spec.mtu,
        membership: membership(object, &spec)?,
        mirror,
    })
}

fn device(object: &Object, spec: &PortSpec) -> Result<PortDevice, FieldError> {
    let content = &object.content;
    let (kind, name, device) = match (&spec.tap, &spec.af_xdp, &spec.packet) {
        (Some(tap), None, None) => (DeviceKind::Tap, "tap", tap),
        (None, Some(af_xdp), None) => (DeviceKind::AfXdp, "afXdp", af_xdp),
        (None, None, Some(packet)) => (DeviceKind::Packet, "packet", packet),
        _ => return Err(FieldError::at(content, &["spec"], "a port is one of `tap`, `afXdp` and `packet`")),
    };
    let namespace = device.namespace.as_ref().map(PathBuf::from);
    if namespace.as_ref().is_some_and(|path| !path.is_absolute()) {
        let message = "the namespace is given as a path such as /run/netns/guest";
        return Err(FieldError::at(content, &["spec", name, "namespace"], message));
    }
    let interface = field(content, &["spec", name, "interface"], InterfaceName::new(&device.interface))?;
    Ok(PortDevice { kind, namespace, interface })
}

fn membership(object: &Object, spec: &PortSpec) -> Result<Option<Membership>, FieldError> {
    let content = &object.content;
    let Some(bridge) = &spec.bridge else {
        let set = [
            ("vlan", spec.vlan.is_some()),
            ("trunk", spec.trunk.is_some()),
            ("nativeVlan", spec.native_vlan.is_some()),
            ("serviceVlan", spec.service_vlan.is_some()),
            ("mirror", spec.mirror.is_some()),
        ];
        return match set.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(FieldError::at(content, &["spec", name], "needs a `bridge`")),
            None => Ok(None),
        };
    };
    let vlan = |name: &'static str, number: u16| field(content, &["spec", name], VlanId::new(number));
    let vlans = match (spec.vlan, &spec.trunk, spec.service_vlan) {
        (None, None, None) => PortVlans::Access(DEFAULT_VLAN),
        (Some(access), None, None) => PortVlans::Access(vlan("vlan", access)?),
        (None, None, Some(service)) => PortVlans::Service(vlan("serviceVlan", service)?),
        (None, Some(trunk), None) => {
            let mut tagged = trunk.iter().map(|number| vlan("trunk", *number)).collect::<Result<Vec<_>, _>>()?;
            tagged.sort_unstable();
            tagged.dedup();
            let native = spec.native_vlan.map(|number| vlan("nativeVlan", number)).transpose()?;
            if native.is_some_and(|native| tagged.contains(&native)) {
                return Err(FieldError::at(content, &["spec", "nativeVlan"], "the native VLAN is not tagged, too"));
            }
            PortVlans::Trunk { tagged, native }
        }
        _ => return Err(FieldError::at(content, &["spec"], "a port has one of `vlan`, `trunk` and `serviceVlan`")),
    };
    if spec.native_vlan.is_some() && spec.trunk.is_none() {
        return Err(FieldError::at(content, &["spec", "nativeVlan"], "needs a `trunk`"));
    }
    let storm = spec.storm_limit.as_ref().map_or_else(StormLimits::default, |limit| StormLimits {
        broadcast: limit.broadcast,
        multicast: limit.multicast,
        unknown: limit.unknown_unicast,
    });
    let bridge = field(content, &["spec", "bridge"], BridgeName::new(bridge))?;
    Ok(Some(Membership {
        vlans,
        tag_protocol: match spec.tag_protocol {
            Some(TagProtocolSpec::Service) => TagProtocol::Service,
            Some(TagProtocolSpec::Customer) | None => TagProtocol::Customer,
        },
        isolated: spec.isolated.unwrap_or(false),
        group: spec.split_horizon_group,
        station_limit: spec.station_limit.unwrap_or(limits::STATIONS_PER_PORT),
        storm,
        ..Membership::new(bridge)
    }))
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("{text:?} cannot be a tunnel end"));
    }
    Ok(address)
}
