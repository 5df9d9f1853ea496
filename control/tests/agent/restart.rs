//! An agent that is killed and started again: pods outlive it.

use millrace_control::kernel::Namespace;

use crate::agent_process::AgentOptions;
use crate::cluster::Cluster;
use crate::pod::Pod;
use crate::traffic;

pub(crate) fn pods_survive_a_killed_agent() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let [a1, a2, b1] = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [&a1, &a2, &b1].map(|pod| pod.add(directory));
    traffic::udp(&ends[0], &ends[2], true);
    let before = [a1.interface(), a2.interface()].map(|link| link.map(|link| (link.index, link.mac, link.mtu)));

    first.kill();
    for (pod, end) in [&a1, &a2].iter().zip(&ends) {
        let mut held = pod.addresses();
        held.sort();
        assert_eq!(held, end.addresses, "the addresses stay");
    }
    let first = underlay.start(0, AgentOptions::default());
    let after = [a1.interface(), a2.interface()].map(|link| link.map(|link| (link.index, link.mac, link.mtu)));
    assert_eq!(after, before, "the interfaces are the same ones");
    traffic::check(&ends[0], &ends[1]);
    traffic::check(&ends[0], &ends[2]);
    assert_eq!(first.status().pods, 2);
    first.assert_sound();
    other.assert_sound();

    for _ in 0..2 {
        a1.delete(directory);
    }
    assert!(a1.interface().is_none(), "the interface is gone");
    assert_eq!(first.status().pods, 1);
    let again = a1.add(directory);
    assert_ne!(again.addresses, ends[1].addresses, "no address is given twice");
    traffic::udp(&again, &ends[1], true);
    traffic::udp(&again, &ends[2], false);
    [&a1, &a2, &b1].iter().for_each(|pod| pod.delete(directory));
    assert!([&a1, &a2, &b1].iter().all(|pod| pod.interface().is_none()));
    let ports = |status: millrace_control::api::model::StatusReport| (status.pods, status.ports);
    assert_eq!((ports(first.status()), ports(other.status())), ((0, 2), (0, 2)), "the host's ports and the uplinks");
}

/// While the agent was down, the pod's namespace went, as after a reboot: what it held is free again.
pub(crate) fn an_attachment_of_a_lost_pod_is_released() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let (lost, stays, b1) = (Pod::create("lost", "a"), Pod::create("stays", "a"), Pod::create("b1", "b"));
    lost.add(directory);
    let ends = [stays.add(directory), b1.add(directory)];
    first.kill();
    let Pod { name, node, namespace } = lost;
    drop(namespace);
    let first = underlay.start(0, AgentOptions::default());
    traffic::udp(&ends[0], &ends[1], true);
    assert_eq!(first.status().pods, 1);
    first.assert_sound();
    // The runtime cleans up late, and then uses the same name for a new sandbox.
    let late = Pod { name, node, namespace: Namespace::create_named(&crate::directory::unique("late")).expect("made") };
    late.delete(directory);
    let end = late.add(directory);
    traffic::udp(&end, &ends[1], false);
    first.assert_sound();
    other.assert_sound();
}

/// A pod that a new agent cannot take up, here because its record names it by no name, harms no other: what the workers
/// had of it already is let go, and the number of its port is nobody else's until its DEL.
pub(crate) fn a_pod_that_cannot_be_taken_up_is_in_nobodys_way() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let (cut, next, b1) = (Pod::create("cut", "a"), Pod::create("next", "a"), Pod::create("b1", "b"));
    cut.add(directory);
    let far = b1.add(directory);
    first.kill();
    let record = directory.file("a.state/attachments.json");
    let text = std::fs::read_to_string(&record).expect("read").replace("\"name\": \"cut\"", "\"name\": \"CUT\"");
    std::fs::write(&record, text).expect("written");
    let first = underlay.start(0, AgentOptions::default());
    first.wait_for_status(|status| status.problems.iter().any(|problem| problem.message.contains("is cut off")));
    let end = next.add(directory);
    traffic::udp(&end, &far, true);
    cut.delete(directory);
    next.delete(directory);
    assert_eq!((cut.interface(), next.interface(), first.status().pods), (None, None, 0));
    // What was said of it is over.
    first.assert_sound();
    other.assert_sound();
}
