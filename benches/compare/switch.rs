//! Two TAP pods on a switch with one worker, set up as the agent sets pods up.

use std::net::IpAddr;

use std::time::Duration;

use anyhow::Context;
use millrace_control::demo::traffic::Endpoint;
use millrace_control::kernel::{Namespace, PodInterface, configure_pod_interface};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::tap::TapDevice;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::testing::node::{GATEWAY_MAC, TestPod, pods_snapshot};
use millrace_engine::worker::IdlePolicy;

const UPLINK: u16 = 100;
const MTU: u32 = 1450;

pub(crate) struct TapSwitch {
    switch: Switch,
    pods: Vec<(Namespace, IpAddr)>,
}

impl TapSwitch {
    pub(crate) fn build(worker: Option<usize>, spin: Option<u64>) -> anyhow::Result<TapSwitch> {
        let idle = match spin {
            Some(microseconds) => IdlePolicy::Adaptive { spin: Duration::from_micros(microseconds) },
            None => IdlePolicy::default(),
        };
        let cores = worker.into_iter().collect();
        let mut switch = Switch::new(SwitchOptions { cores, idle, ..SwitchOptions::default() })?;
        let (mut pods, mut described) = (Vec::new(), Vec::new());
        for port in [1u16, 2] {
            let (namespace, address) = (Namespace::create_anonymous()?, format!("10.1.0.{port}").parse()?);
            let mac = Mac([2, 0, 0x5e, 0, 0x53, port as u8]);
            let tap = TapDevice::create_in_namespace(namespace.handle(), "eth0", 1)?;
            let interface = PodInterface::new(vec![address], mac, GATEWAY_MAC, MTU);
            configure_pod_interface(namespace.handle(), "eth0", &interface)?;
            let index = PortIndex(port);
            let queues = tap.into_queues(index).into_iter().map(|queue| Some(Box::new(queue) as Box<dyn PortQueue>));
            switch.attach(index, queues.collect()).context("cannot attach a TAP")?;
            described.push(TestPod { port, mac, addresses: vec![address] });
            pods.push((namespace, address));
        }
        switch.publish(pods_snapshot(&described, UPLINK, Mac([2, 0, 0, 0, 0, 201]), &[]));
        switch.start()?;
        Ok(TapSwitch { switch, pods })
    }

    pub(crate) fn endpoints(&self) -> [Endpoint; 2] {
        std::array::from_fn(|number| {
            let (namespace, address) = &self.pods[number];
            Endpoint {
                name: format!("tap pod {number}"),
                namespace: namespace.handle().clone(),
                addresses: vec![*address],
            }
        })
    }
}

impl Drop for TapSwitch {
    fn drop(&mut self) {
        self.switch.stop();
    }
}
