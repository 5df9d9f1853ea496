//! Two veth pods on a Linux bridge in a namespace of its own.

use millrace_control::demo::traffic::Endpoint;
use millrace_control::kernel::{LinkChange, Namespace, Netlink};

const MTU: u32 = 1450;

pub(crate) struct Bridge {
    pods: [Namespace; 2],
    _node: Namespace,
}

impl Bridge {
    pub(crate) fn build() -> anyhow::Result<Bridge> {
        let node = Namespace::create_anonymous()?;
        let pods = [Namespace::create_anonymous()?, Namespace::create_anonymous()?];
        let mut netlink = Netlink::open_in(node.handle())?;
        netlink.create_bridge("bridge0")?;
        netlink.change_link("bridge0", &LinkChange::up())?;
        let bridge = netlink.existing_link("bridge0")?.index;
        for (number, pod) in pods.iter().enumerate() {
            let port = format!("port{number}");
            netlink.create_veth((&port, None), ("eth0", Some(pod.handle())))?;
            let change = LinkChange { mtu: Some(MTU), controller: Some(bridge), ..LinkChange::up() };
            netlink.change_link(&port, &change)?;
            let mut inside = Netlink::open_in(pod.handle())?;
            inside.change_link("eth0", &LinkChange { mtu: Some(MTU), ..LinkChange::up() })?;
            inside.add_address("eth0", format!("{}/24", address(number)).parse()?)?;
        }
        Ok(Bridge { pods, _node: node })
    }

    pub(crate) fn endpoints(&self) -> [Endpoint; 2] {
        std::array::from_fn(|number| Endpoint {
            name: format!("bridge pod {number}"),
            namespace: self.pods[number].handle().clone(),
            addresses: address(number).parse().into_iter().collect(),
        })
    }
}

fn address(number: usize) -> String {
    format!("192.0.2.{}", number + 1)
}
