//! Ports of the host that runtimes ask for pods (CNI capability `portMappings`), before they are planned.
//!
//! Two pods cannot have one port at one address. Who comes second is refused, by the plan in force for what has it already,
//! and by the calls at work for what will have it.

use millrace_cni::protocol::{PortMapping, Transport};
use millrace_engine::packet::parse::protocol;

use crate::cluster::{ContainerPort, HostPort};
use crate::cni_server::{CniFailure, RuntimeConfig};

/// What a runtime asks for, as a container's ports.
pub(super) fn wanted(runtime: &RuntimeConfig) -> Vec<ContainerPort> {
    runtime.port_mappings.iter().map(container_port).collect()
}

fn container_port(mapping: &PortMapping) -> ContainerPort {
    ContainerPort {
        name: String::new(),
        protocol: match mapping.transport {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
            Transport::Sctp => protocol::SCTP,
        },
        port: mapping.container_port,
        host: Some(HostPort { port: mapping.host_port, address: mapping.host_address }),
    }
}

/// Refuses the first of the wanted ports that one of the others has: the same number and protocol, where not each is at an
/// address of its own.
pub(super) fn first_conflict<'a>(
    wanted: &[ContainerPort],
    others: impl Iterator<Item = (&'a Vec<ContainerPort>, String)>,
) -> Result<(), CniFailure> {
    for (ports, holder) in others {
        let meets = |port: &ContainerPort| ports.iter().any(|other| meet(port, other));
        if let Some(host) = wanted.iter().find(|port| meets(port)).and_then(|port| port.host) {
            let place = match host.address {
                Some(address) => std::net::SocketAddr::new(address, host.port).to_string(),
                None => host.port.to_string(),
            };
            return Err(CniFailure::HostPortTaken { place, holder });
        }
    }
    Ok(())
}

fn meet(one: &ContainerPort, other: &ContainerPort) -> bool {
    let (Some(here), Some(there)) = (one.host, other.host) else { return false };
    let apart = matches!((here.address, there.address), (Some(here), Some(there)) if here != there);
    one.protocol == other.protocol && here.port == there.port && !apart
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, transport: Transport, address: Option<&str>) -> ContainerPort {
        container_port(&PortMapping {
            host_port: number,
            container_port: 80,
            transport,
            host_address: address.map(|text| text.parse().expect("address")),
        })
    }

    #[test]
    fn one_port_at_two_addresses_or_of_two_protocols_is_two() {
        let held = vec![port(80, Transport::Tcp, Some("192.0.2.1")), port(81, Transport::Udp, None)];
        let check = |wanted| first_conflict(&[wanted], [(&held, "Pod default/one".to_owned())].into_iter());
        for free in [
            port(80, Transport::Udp, None),
            port(80, Transport::Tcp, Some("192.0.2.2")),
            port(81, Transport::Tcp, None),
            port(82, Transport::Udp, None),
        ] {
            assert!(check(free).is_ok());
        }
        for taken in [
            port(80, Transport::Tcp, None),
            port(80, Transport::Tcp, Some("192.0.2.1")),
            port(81, Transport::Udp, Some("192.0.2.1")),
        ] {
            let text = check(taken).expect_err("taken").to_string();
            assert!(text.contains("default/one") && text.contains("hostPort"), "{text}");
        }
    }
}
