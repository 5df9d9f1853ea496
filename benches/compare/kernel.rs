//! The kernel's own: pods on a bridge in each node, VXLAN between the nodes in flannel's layout (one endpoint a node, VNI 1,
//! port 8472, no learning), Services by rules of netfilter in the client's node as kube-proxy lays them out.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millrace_control::kernel::LinkChange;
use rustix::process::Pid;

use crate::backend::{Backend, Kind};
use crate::program::{run, run_with};
use crate::services::{SERVICE_PORT, Services};
use crate::site::{Ends, POD_MTU, POD_NODES, SERVER_PORT, Site, UPLINK, node_address};

const BRIDGE: &str = "cni0";
const TUNNEL: &str = "flannel.1";

pub(crate) struct Kernel {
    kind: Kind,
    site: Site,
    ends: Ends,
}

impl Kernel {
    pub(crate) fn build(kind: Kind) -> anyhow::Result<Kernel> {
        let site = Site::build(kind.name())?;
        site.address_uplinks()?;
        for (number, node) in site.nodes.iter().enumerate() {
            let (node, other) = (node.handle(), 1 - number);
            for line in [
                "sysctl -q -w net.ipv4.ip_forward=1".to_owned(),
                format!("ip link add {BRIDGE} type bridge"),
                format!("ip link set {BRIDGE} mtu {POD_MTU} up"),
                format!("ip address add 10.244.{number}.1/24 dev {BRIDGE}"),
                format!(
                    "ip link add {TUNNEL} address {} type vxlan id 1 dstport 8472 nolearning local {} dev {UPLINK}",
                    tunnel_mac(number),
                    node_address(number)
                ),
                format!("ip address add 10.244.{number}.0/32 dev {TUNNEL}"),
                format!("ip link set {TUNNEL} mtu {POD_MTU} up"),
                format!("ip neighbour add 10.244.{other}.0 lladdr {} dev {TUNNEL}", tunnel_mac(other)),
                format!("bridge fdb append {} dev {TUNNEL} dst {}", tunnel_mac(other), node_address(other)),
                format!("ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev {TUNNEL} onlink"),
            ] {
                run(node, &line)?;
            }
            // What Kubernetes asks of a node; a kernel without it has nothing to switch on.
            let _ = run(node, "sysctl -q -w net.bridge.bridge-nf-call-iptables=1");
        }
        site.join_pods(|number, netlink, port| {
            let bridge = netlink.existing_link(BRIDGE)?.index;
            netlink.change_link(port, &LinkChange { controller: Some(bridge), ..LinkChange::up() })?;
            let (node, pod) = (POD_NODES[number], site.pods[number].handle());
            run(pod, &format!("ip address add {}/24 dev eth0", pod_address(number)))?;
            run(pod, &format!("ip route add default via 10.244.{node}.1"))?;
            Ok(())
        })?;
        let ends = site.ends([0, 1, 2].map(pod_address));
        Ok(Kernel { kind, site, ends })
    }
}

impl Backend for Kernel {
    fn site(&self) -> &Site {
        &self.site
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn program(&mut self, services: Services) -> anyhow::Result<Duration> {
        let node = self.site.nodes[0].handle();
        if self.kind == Kind::Nftables {
            let rules = nftables(services)?;
            // Taking old rules away is not what is measured.
            let _ = run(node, "nft delete table ip services");
            let start = Instant::now();
            run_with(node, "nft -f -", &rules)?;
            return Ok(start.elapsed());
        }
        let rules = iptables(services)?;
        run_with(node, "iptables-restore", "*nat\nCOMMIT\n")?;
        let start = Instant::now();
        run_with(node, "iptables-restore", &rules)?;
        Ok(start.elapsed())
    }

    fn processes(&self) -> Vec<Pid> {
        Vec::new()
    }
}

fn pod_address(number: usize) -> IpAddr {
    IpAddr::from([10, 244, POD_NODES[number] as u8, number as u8 + 2])
}

fn tunnel_mac(node: usize) -> String {
    format!("02:00:5e:00:53:{:02x}", node + 1)
}

/// One map from address, protocol and port to a chain for each Service; in it a random choice of a chain for each endpoint;
/// there the translation, and a mark for what has to be masqueraded.
fn nftables(services: Services) -> anyhow::Result<String> {
    let mut text = "table ip services {\n\
        chain marking { meta mark set meta mark or 0x4000\n }\n\
        chain masquerading { type nat hook postrouting priority srcnat\n meta mark and 0x4000 == 0 return\n \
        meta mark set meta mark xor 0x4000\n masquerade fully-random\n }\n"
        .to_owned();
    for place in 0..services.count {
        let endpoints = services.endpoints(place);
        for (number, endpoint) in endpoints.iter().enumerate() {
            write!(
                text,
                "chain endpoint-{place}-{number} {{ ip saddr {endpoint} jump marking\n \
                 meta l4proto tcp dnat to {endpoint}:{SERVER_PORT}\n }}\n"
            )?;
        }
        let choices: Vec<_> =
            (0..endpoints.len()).map(|number| format!("{number} : goto endpoint-{place}-{number}")).collect();
        write!(
            text,
            "chain service-{place} {{ numgen random mod {} vmap {{ {} }}\n }}\n",
            endpoints.len(),
            choices.join(", ")
        )?;
    }
    let elements: Vec<_> = services
        .addresses()
        .enumerate()
        .map(|(place, address)| format!("{address} . tcp . {SERVICE_PORT} : goto service-{place}"))
        .collect();
    write!(
        text,
        "map addresses {{ type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {} }}\n }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @addresses\n }}\n\
         chain from-pods {{ type nat hook prerouting priority dstnat\n jump services\n }}\n\
         chain from-host {{ type nat hook output priority -100\n jump services\n }}\n}}\n",
        elements.join(", ")
    )?;
    Ok(text)
}

/// One list of rules that each name a Service's address; behind each a chain that chooses among its endpoints.
fn iptables(services: Services) -> anyhow::Result<String> {
    let (mut chains, mut rules): (String, String) = (
        "*nat\n:SERVICES - [0:0]\n:MARKING - [0:0]\n:MASQUERADING - [0:0]\n".to_owned(),
        "-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n-A POSTROUTING -j MASQUERADING\n\
         -A MARKING -j MARK --or-mark 0x4000\n-A MASQUERADING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A MASQUERADING -j MARK --xor-mark 0x4000\n-A MASQUERADING -j MASQUERADE --random-fully\n"
            .to_owned(),
    );
    for (place, address) in services.addresses().enumerate() {
        let endpoints = services.endpoints(place);
        writeln!(chains, ":SERVICE-{place} - [0:0]")?;
        writeln!(rules, "-A SERVICES -d {address}/32 -p tcp -m tcp --dport {SERVICE_PORT} -j SERVICE-{place}")?;
        for (number, endpoint) in endpoints.iter().enumerate() {
            writeln!(chains, ":ENDPOINT-{place}-{number} - [0:0]")?;
            let left = endpoints.len() - number;
            let chance = match left {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            writeln!(rules, "-A SERVICE-{place} {chance}-j ENDPOINT-{place}-{number}")?;
            writeln!(rules, "-A ENDPOINT-{place}-{number} -s {endpoint}/32 -j MARKING")?;
            writeln!(
                rules,
                "-A ENDPOINT-{place}-{number} -p tcp -m tcp -j DNAT --to-destination {endpoint}:{SERVER_PORT}"
            )?;
        }
    }
    Ok(format!("{chains}{rules}COMMIT\n"))
}
