//! Real container runtimes as clients of the plugin: podman with its CNI backend, and containerd by its CRI as a kubelet
//! drives it, both from Debian's packages, with an image made here.
//!
//! ```text
//!  node a: agent, podman or containerd, containers --- up0 --- node b: agent, a pod ------ two hops ------ outside
//! ```
//! A test runs in mounts, processes and a network of its own ([`isolation`]), so nothing of a runtime outlives it whatever
//! happens, and what a runtime leaves behind by itself is seen ([`leftovers`]). Where a runtime is not installed its test is
//! ignored and says so.

mod containerd;
mod cri;
mod image;
mod isolation;
mod leftovers;
mod podman;
mod together;
mod world;

pub(crate) use isolation::as_isolated;

/// What has to be installed.
const PACKAGES: &str = "podman runc containerd containernetworking-plugins busybox-static";

pub(crate) fn podman_connects_its_containers() {
    isolation::run("podman");
}

pub(crate) fn containerd_connects_its_pods() {
    isolation::run("containerd");
}

pub(crate) fn podman_and_containerd_share_a_node() {
    isolation::run("share");
}

pub(crate) fn runtimes_outlive_the_agent() {
    isolation::run("outlive");
}

pub(crate) fn nothing_of_a_runtime_outlives_a_failed_test() {
    isolation::run_failing("failing");
}
