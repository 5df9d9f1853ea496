//! `Service` and `ServiceCIDR` objects.
//!
//! A Service is read leniently where an API server has checked already (unknown fields, fields of other kinds), and
//! strictly where a person writes (our annotations): a misspelt word there is a problem with its line.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::services::Balance;

use crate::cluster::{
    ClientSubnet, Distribution, EndpointGroup, ServiceName, ServicePortRecord, ServiceRangeName, ServiceRangeRecord,
    ServiceRecord, TargetPort,
};
use crate::store::{FieldError, Object};

/// Annotation of ours: how one endpoint of several is picked.
const BALANCE: &str = "millrace.dev/balance";
/// Annotation of ours: shares, `web-0=3, 10.1.0.7=0`.
const WEIGHTS: &str = "millrace.dev/weights";
/// Annotation of ours: `10.0.0.0/8 => zone=east, node=a; ::/0 => fd00:1::/64`.
const CLIENT_SUBNETS: &str = "millrace.dev/client-subnets";
/// Labels that take a Service away from the cluster's proxy (KEP-2447).
const OTHER_PROXY: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Time a client stays with its endpoint where the Service does not say.
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);
/// Longest such time the API allows.
const AFFINITY_LONGEST: i32 = 86_400;
/// Networks of clients one Service may name.
const CLIENT_SUBNETS_MOST: usize = 64;

/// Reads one field of an object with an error that names it.
struct Fields<'a>(&'a Object);

impl Fields<'_> {
    fn error(&self, path: &[&str], message: impl Display) -> FieldError {
        FieldError::at(&self.0.content, path, message.to_string())
    }

    fn parse<T: std::str::FromStr>(&self, path: &[&str], text: &str, what: &str) -> Result<T, FieldError> {
        text.trim().parse().map_err(|_| self.error(path, format!("{text:?} is not {what}")))
    }

    /// Addresses that a Service may have.
    fn addresses<'t>(&self, path: &[&str], texts: impl Iterator<Item = &'t String>) -> Result<Vec<IpAddr>, FieldError> {
        let address = |text: &'t String| {
            let address = self.parse(path, text, "an IP address")?;
            // Who wrote the status of a load balancer may know better about addresses of its own link.
            let given = |sort: &&str| path[0] == "status" && *sort == LINK_LOCAL;
            match special(address).filter(|sort| !given(sort)) {
                Some(sort) => Err(self.error(path, format!("{address} is {sort} and leads to no Service"))),
                None => Ok(address),
            }
        };
        texts.map(address).collect()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.0.content.at(&["metadata", "annotations", key])?.text()
    }

    fn annotation_error(&self, key: &str, message: impl Display) -> FieldError {
        self.error(&["metadata", "annotations", key], message)
    }
}

const LINK_LOCAL: &str = "a link-local address";

/// Of which sort an address is that neither a Service nor an endpoint may have (`ValidateNonSpecialIP` in Kubernetes'
/// pkg/apis/core/validation/validation.go, and multicast and broadcast, which no connection has).
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("unspecified")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some(LINK_LOCAL)
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        (address == IpAddr::V4(Ipv4Addr::BROADCAST)).then_some("the broadcast address")
    }
}

pub(super) fn service(object: &Object) -> Result<ServiceRecord, FieldError> {
    let service: Service = object.content.read()?;
    let fields = Fields(object);
    let name = ServiceName::new(object.key.namespace.as_deref().unwrap_or("default"), &object.key.name)
        .map_err(|error| fields.error(&["metadata", "name"], error))?;
    let labels = service.metadata.labels.unwrap_or_default();
    let spec = service.spec.unwrap_or_default();
    let cluster_ips = cluster_ips(&fields, &spec)?;
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let others = OTHER_PROXY.iter().any(|label| labels.contains_key(*label));
    let ports = spec.ports.iter().flatten().map(|port| service_port(&fields, port)).collect::<Result<Vec<_>, _>>()?;
    let local = |value: &Option<String>| value.as_deref() == Some("Local");
    let external_local = local(&spec.external_traffic_policy);
    Ok(ServiceRecord {
        name,
        proxied: !external_name && !others && !cluster_ips.is_empty(),
        ports,
        external_ips: fields.addresses(&["spec", "externalIPs"], spec.external_ips.iter().flatten())?,
        load_balancer_ips: load_balancer_ips(&fields, &service.status)?,
        source_ranges: source_ranges(&fields, &spec)?,
        internal_local: local(&spec.internal_traffic_policy),
        external_local,
        affinity: affinity(&fields, &spec)?,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        distribution: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
            Some("PreferSameNode") => Distribution::SameNode,
            _ => Distribution::Even,
        },
        health_check_port: health_check_port(&fields, &spec)?.filter(|_| load_balancer && external_local),
        selector: spec.selector.unwrap_or_default(),
        balance: balance(&fields)?,
        weights: weights(&fields)?,
        client_subnets: client_subnets(&fields)?,
        cluster_ips,
    })
}

/// The first of each family; none if it is headless.
fn cluster_ips(fields: &Fields<'_>, spec: &ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    let listed = spec.cluster_ips.iter().flatten();
    let single = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.as_ref().is_none_or(Vec::is_empty));
    let mut found: Vec<IpAddr> = Vec::new();
    for text in listed.chain(single).filter(|text| !text.is_empty() && *text != "None") {
        let address: IpAddr = fields.parse(&["spec", "clusterIPs"], text, "an IP address")?;
        if !found.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The number of a transport protocol by its name in the API; TCP if none is given.
pub(super) fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("TCP" | "") => Some(protocol::TCP),
        Some("UDP") => Some(protocol::UDP),
        Some("SCTP") => Some(protocol::SCTP),
        Some(_) => None,
    }
}

/// A port number of the API, 1 to 65535.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn service_port(fields: &Fields<'_>, port: &ServicePort) -> Result<ServicePortRecord, FieldError> {
    let path = ["spec", "ports"];
    let number =
        |number: i32| port_number(number).ok_or_else(|| fields.error(&path, format!("{number} is not a port")));
    let own = number(port.port)?;
    let unknown = || fields.error(&path, format!("protocol {:?} is none of TCP, UDP, SCTP", port.protocol));
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(target)) => TargetPort::Number(number(*target)?),
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(target) => TargetPort::Number(number(target)?),
            Err(_) => TargetPort::Name(name.clone()),
        },
    };
    Ok(ServicePortRecord {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol_number(port.protocol.as_deref()).ok_or_else(unknown)?,
        port: own,
        node_port: port.node_port.filter(|port| *port != 0).map(number).transpose()?,
        target,
    })
}

/// Those that the node serves: `ipMode: Proxy` means that packets come with another destination (KEP-1860).
fn load_balancer_ips(
    fields: &Fields<'_>,
    status: &Option<k8s_openapi::api::core::v1::ServiceStatus>,
) -> Result<Vec<IpAddr>, FieldError> {
    let balancer = status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
    let served = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    let given = served.filter_map(|ingress| ingress.ip.as_ref()).filter(|text| !text.is_empty());
    fields.addresses(&["status", "loadBalancer", "ingress"], given)
}

/// Blanks around a range are tolerated, as kube-proxy does.
fn source_ranges(fields: &Fields<'_>, spec: &ServiceSpec) -> Result<Vec<IpNet>, FieldError> {
    let texts = spec.load_balancer_source_ranges.iter().flatten().filter(|text| !text.trim().is_empty());
    let path = ["spec", "loadBalancerSourceRanges"];
    texts.map(|text| fields.parse::<IpNet>(&path, text, "a prefix").map(|range| range.trunc())).collect()
}

fn affinity(fields: &Fields<'_>, spec: &ServiceSpec) -> Result<Option<Duration>, FieldError> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Ok(None);
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    match client_ip.and_then(|client_ip| client_ip.timeout_seconds) {
        None => Ok(Some(AFFINITY_DEFAULT)),
        Some(seconds @ 1..=AFFINITY_LONGEST) => Ok(Some(Duration::from_secs(seconds.unsigned_abs().into()))),
        Some(seconds) => {
            let path = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            Err(fields.error(&path, format!("{seconds} is not between 1 and {AFFINITY_LONGEST}")))
        }
    }
}

fn health_check_port(fields: &Fields<'_>, spec: &ServiceSpec) -> Result<Option<u16>, FieldError> {
    let Some(number) = spec.health_check_node_port.filter(|port| *port != 0) else { return Ok(None) };
    let wrong = || fields.error(&["spec", "healthCheckNodePort"], format!("{number} is not a port"));
    port_number(number).map(Some).ok_or_else(wrong)
}

fn balance(fields: &Fields<'_>) -> Result<Balance, FieldError> {
    let all = [Balance::Random, Balance::RoundRobin, Balance::LeastConnections, Balance::Maglev];
    let Some(word) = fields.annotation(BALANCE) else { return Ok(Balance::default()) };
    all.into_iter().find(|balance| balance.name() == word.trim()).ok_or_else(|| {
        let known = all.map(Balance::name).join(", ");
        fields.annotation_error(BALANCE, format!("{word:?} is none of {known}"))
    })
}

fn weights(fields: &Fields<'_>) -> Result<BTreeMap<String, u16>, FieldError> {
    let text = fields.annotation(WEIGHTS).unwrap_or_default();
    let parts = text.split([',', ';', '\n']).map(str::trim).filter(|part| !part.is_empty());
    let weight = |part: &str| {
        let read =
            part.split_once('=').and_then(|(who, weight)| Some((who.trim().to_owned(), weight.trim().parse().ok()?)));
        read.filter(|(_, weight)| *weight <= 1_000).ok_or_else(|| {
            fields.annotation_error(
                WEIGHTS,
                format!("{part:?} is not POD=WEIGHT or ADDRESS=WEIGHT with a weight up to 1000"),
            )
        })
    };
    parts.map(weight).collect()
}

fn client_subnets(fields: &Fields<'_>) -> Result<Vec<ClientSubnet>, FieldError> {
    let text = fields.annotation(CLIENT_SUBNETS).unwrap_or_default();
    let mut rules: Vec<ClientSubnet> = Vec::new();
    for line in text.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
        let wrong = |why: &str| fields.annotation_error(CLIENT_SUBNETS, format!("{line:?} {why}"));
        let (clients, groups) = line.split_once("=>").ok_or_else(|| wrong("is not PREFIX => GROUP, GROUP"))?;
        let clients = clients.trim().parse::<IpNet>().map_err(|_| wrong("does not begin with a prefix"))?.trunc();
        let groups = groups.split(',').map(|group| endpoint_group(group.trim()));
        let groups = groups.collect::<Option<Vec<_>>>();
        let groups = groups.ok_or_else(|| wrong("has a group that is neither zone=NAME, node=NAME nor a prefix"))?;
        if rules.iter().any(|rule| rule.clients == clients) {
            return Err(wrong("names clients that an earlier rule has"));
        }
        if rules.len() == CLIENT_SUBNETS_MOST {
            return Err(wrong("is one rule more than the 64 there may be"));
        }
        rules.push(ClientSubnet { clients, groups });
    }
    Ok(rules)
}

fn endpoint_group(text: &str) -> Option<EndpointGroup> {
    let named = |name: &str| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    match text.split_once('=') {
        Some(("zone", name)) => named(name).map(EndpointGroup::Zone),
        Some(("node", name)) => named(name).map(EndpointGroup::Node),
        Some(_) => None,
        None => text.parse::<IpNet>().ok().map(|prefix| EndpointGroup::Prefix(prefix.trunc())),
    }
}

pub(super) fn service_range(object: &Object) -> Result<(ServiceRangeName, ServiceRangeRecord), FieldError> {
    let range: ServiceCIDR = object.content.read()?;
    let fields = Fields(object);
    let name = ServiceRangeName::new(&object.key.name).map_err(|error| fields.error(&["metadata", "name"], error))?;
    let cidrs = range.spec.map(|spec| spec.cidrs).unwrap_or_default();
    let path = ["spec", "cidrs"];
    let read = |text: &String| text.parse().map_err(|error: crate::cluster::CidrError| fields.error(&path, error));
    Ok((name, ServiceRangeRecord { ranges: cidrs.iter().flatten().map(read).collect::<Result<_, _>>()? }))
}
