//! What happens to a cluster: objects change, come and go, pods are plugged in and out before and after their objects,
//! names and addresses are used again.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::random_cluster::{
    NAMESPACES, RandomCluster, address, cluster_policy, ground, labels, network_policy, pod, ports,
};
use super::{NODE, plugged_by};
use crate::random::Random;

/// What is to be told of a change: objects that were applied, then objects that were deleted.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// As they are now.
    pub applied: Vec<Value>,
    /// As they were.
    pub deleted: Vec<Value>,
}

impl RandomCluster {
    /// Changes one thing, as people, kubelets and runtimes do.
    pub fn change(&mut self, random: &mut Random) -> Told {
        match random.below(12) {
            0 => self.add_policy(random),
            1 => self.another_namespace(random),
            2 => self.add_pod(random),
            3 => self.plug_or_unplug(random),
            4 => self.another_block(random),
            5..=7 => self.change_pod(random),
            _ => self.change_any(random),
        }
    }

    fn apply(&mut self, new: Value) -> Told {
        let key = |object: &Value| {
            (object["kind"].clone(), object["metadata"]["namespace"].clone(), object["metadata"]["name"].clone())
        };
        match self.objects.iter_mut().find(|object| key(object) == key(&new)) {
            Some(known) => known.clone_from(&new),
            None => self.objects.push(new.clone()),
        }
        Told { applied: vec![new], ..Told::default() }
    }

    fn delete(&mut self, at: usize) -> Told {
        Told { deleted: vec![self.objects.remove(at)], ..Told::default() }
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// Places of the objects of a kind.
    fn places(&self, kind: &str) -> Vec<usize> {
        (0..self.objects.len()).filter(|at| self.objects[*at]["kind"] == kind).collect()
    }

    fn add_policy(&mut self, random: &mut Random) -> Told {
        let number = self.number();
        let new = if random.per_mille(500) { network_policy(random, number) } else { cluster_policy(random, number) };
        self.apply(new)
    }

    fn another_namespace(&mut self, random: &mut Random) -> Told {
        let name = *random.pick(&NAMESPACES);
        let known = self.places("Namespace").into_iter().find(|at| self.objects[*at]["metadata"]["name"] == name);
        match known {
            Some(at) if random.per_mille(500) => self.delete(at),
            _ => {
                let metadata = json!({"name": name, "labels": labels(random)});
                self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
            }
        }
    }

    /// A pod of which the node knows first, or the objects, or both at once.
    fn add_pod(&mut self, random: &mut Random) -> Told {
        let number = self.number();
        let new = pod(random, number);
        let first = random.below(3);
        if first != 0 {
            self.view.plugged.extend(plugged_by(&new));
        }
        if first == 1 { Told::default() } else { self.apply(new) }
    }

    /// A node gets another block, and with it another address among pods, or gives it back.
    fn another_block(&mut self, random: &mut Random) -> Told {
        let name = *random.pick(&["more-a", "more-b"]);
        let known = self.places("IpBlock").into_iter().find(|at| self.objects[*at]["metadata"]["name"] == name);
        match known {
            Some(at) => self.delete(at),
            None => {
                let (cidr, node) = if name == "more-a" { ("10.1.9.0/24", "a") } else { ("10.2.0.128/25", "b") };
                let metadata = json!({"name": name});
                let spec = json!({"cidr": cidr, "pool": "pods", "node": node});
                self.apply(json!({
                    "apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": metadata, "spec": spec,
                }))
            }
        }
    }

    /// The runtime makes a pod's sandbox anew, takes it away, or brings it before the kubelet has told of it.
    fn plug_or_unplug(&mut self, random: &mut Random) -> Told {
        if self.view.plugged.is_empty() {
            return Told::default();
        }
        let at = random.below(self.view.plugged.len());
        match random.below(3) {
            0 => drop(self.view.plugged.remove(at)),
            1 => self.view.plugged[at].uid = Some(format!("u{}", random.below(self.next))),
            _ => self.view.plugged[at].uid = None,
        }
        Told::default()
    }

    fn change_pod(&mut self, random: &mut Random) -> Told {
        let places = self.places("Pod");
        if places.is_empty() {
            return self.add_pod(random);
        }
        let at = *random.pick(&places);
        let mut new = self.objects[at].clone();
        match random.below(6) {
            0 => {
                if random.per_mille(500) {
                    let plugged = &mut self.view.plugged;
                    plugged.retain(|plugged| new["metadata"]["name"] != plugged.name.as_str());
                }
                return self.delete(at);
            }
            1 => new["spec"]["containers"][0]["ports"] = ports(random).into(),
            2 => new["status"]["podIPs"] = self.some_addresses(random),
            3 => new["status"]["phase"] = (*random.pick(&["Running", "Succeeded", "Pending"])).into(),
            4 => new["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into(),
            _ => {
                // Made anew under its name, here or elsewhere.
                new = pod(random, self.number());
                for field in ["name", "namespace"] {
                    new["metadata"][field] = self.objects[at]["metadata"][field].clone();
                }
                new["metadata"]["uid"] = format!("u{}", random.below(self.next)).into();
            }
        }
        self.apply(new)
    }

    /// Addresses that a late status may have: of another pod, of this node's pods too, or of nobody.
    fn some_addresses(&self, random: &mut Random) -> Value {
        let own = |address: &IpAddr| self.view.has(*address);
        let of_pods = ["10.2.0.4", "10.2.0.5", "10.2.0.6", "fd00:2::5", "10.1.0.77", "10.2.0.251"].map(address);
        let choices: Vec<IpAddr> = of_pods.into_iter().chain(self.addresses().into_iter().filter(own)).collect();
        let picked = (0..random.below(3)).map(|_| json!({"ip": random.pick(&choices).to_string()}));
        picked.collect::<Vec<Value>>().into()
    }

    /// Other labels, another policy, one less.
    fn change_any(&mut self, random: &mut Random) -> Told {
        let first = ground().len();
        if self.objects.len() == first {
            return self.add_policy(random);
        }
        let at = first + random.below(self.objects.len() - first);
        let old = self.objects[at].clone();
        let number = old["metadata"]["name"].as_str().and_then(|name| name[1..].parse().ok()).unwrap_or(0);
        let mut new = match old["kind"].as_str() {
            Some("NetworkPolicy") => network_policy(random, number),
            Some("ClusterNetworkPolicy") => cluster_policy(random, number),
            Some("Pod" | "Namespace") => {
                let mut new = old.clone();
                new["metadata"]["labels"] = labels(random);
                new
            }
            _ => return self.relabel_node(random),
        };
        let is_policy = old["kind"].as_str().is_some_and(|kind| kind.ends_with("Policy"));
        if is_policy && random.per_mille(300) {
            return self.delete(at);
        }
        if is_policy && !old["metadata"]["namespace"].is_null() {
            new["metadata"]["namespace"] = old["metadata"]["namespace"].clone();
        }
        self.apply(new)
    }

    /// Labels of a node other than the one that judges, which tests name.
    fn relabel_node(&mut self, random: &mut Random) -> Told {
        let others: Vec<usize> =
            self.places("Node").into_iter().filter(|at| self.objects[*at]["metadata"]["name"] != NODE).collect();
        let mut new = self.objects[*random.pick(&others)].clone();
        new["metadata"]["labels"] = labels(random);
        self.apply(new)
    }
}
