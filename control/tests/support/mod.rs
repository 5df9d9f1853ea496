//! Two pods and the smallest thing that can connect them: what the kernel and TAP tests share.

// Each test program uses a part of this.
#![allow(dead_code)]

pub(crate) mod forwarder;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use millrace_control::kernel::{Namespace, NamespaceHandle, PodInterface, configure_pod_interface};
use millrace_engine::packet::Mac;
use millrace_engine::port::tap::TapDevice;

/// MAC address of the gateway that the pods send to.
pub(crate) const GATEWAY: Mac = Mac([0x02, 0, 0x5e, 0, 0, 0xfe]);

/// A name no other process and no other test uses.
pub(crate) fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("millrace-test-{}-{}-{word}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A pod: a namespace with an `eth0` that is a TAP.
pub(crate) struct Pod {
    /// Its namespace; deleted with the pod.
    pub(crate) namespace: Namespace,
    /// Its IPv4 and IPv6 address.
    pub(crate) addresses: [IpAddr; 2],
    /// Its MAC address.
    pub(crate) mac: Mac,
}

impl Pod {
    /// Makes pod `number` with a TAP of `queues` queues.
    pub(crate) fn create(number: u8, queues: usize) -> (Pod, TapDevice) {
        let namespace = Namespace::create_named(&unique(&format!("pod{number}"))).expect("namespace");
        let device = TapDevice::create_in_namespace(namespace.handle(), "eth0", queues).expect("tap");
        let pod = Pod {
            namespace,
            addresses: [IpAddr::from([10, 1, 0, number]), IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, u16::from(number)])],
            mac: Mac([0x02, 0, 0x5e, 0, 1, number]),
        };
        pod.configure();
        (pod, device)
    }

    /// Sets up its interface; may be repeated.
    pub(crate) fn configure(&self) {
        let interface = PodInterface::new(self.addresses.to_vec(), self.mac, GATEWAY, 1500);
        configure_pod_interface(self.namespace.handle(), "eth0", &interface).expect("pod interface");
    }

    /// Its namespace.
    pub(crate) fn handle(&self) -> &NamespaceHandle {
        self.namespace.handle()
    }

    /// Runs `act` inside the pod.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.handle().enter(act).expect("entered")
    }
}
