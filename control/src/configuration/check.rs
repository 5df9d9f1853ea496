//! Which values the fields of the agent's file may have.

use millrace_engine::limits;

use super::{ApiServer, File, LARGEST_COUNT, OPEN, POD_CIDR, SOCKET_PATH_BYTES};

/// A field whose value may not be.
pub(super) struct Wrong {
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) reason: &'static str,
}

/// The first field whose value may not be, if there is one.
pub(super) fn check(file: &File) -> Result<(), Wrong> {
    let dns_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let node = file.node.as_bytes();
    require(node.len() <= 253 && node.iter().copied().all(dns_byte), "node", &file.node, "it is no DNS name")?;
    let source = file.addresses.source.as_str();
    require(["blocks", POD_CIDR].contains(&source), "addresses.source", source, "it is \"blocks\" or \"pod-cidr\"")?;
    let unknown = file.policies.unknown_pods.as_str();
    require(["closed", OPEN].contains(&unknown), "policies.unknown_pods", unknown, "it is \"closed\" or \"open\"")?;
    let directories = [("objects_directory", &file.objects_directory), ("state_directory", &file.state_directory)];
    for (field, path) in directories.into_iter().chain([("socket", &file.socket)]) {
        let shown = path.to_string_lossy();
        require(path.is_absolute() && !shown.contains('\0'), field, shown, "it must be an absolute path")?;
    }
    let optional =
        [("cni.configuration_directory", &file.cni.configuration_directory), ("kept_directory", &file.kept_directory)];
    for (field, path) in optional {
        let shown = path.to_string_lossy();
        require(shown.is_empty() || path.is_absolute(), field, &shown, "it must be an absolute path")?;
    }
    let ApiServer { kubeconfig, in_cluster } = &file.api_server;
    let shown = kubeconfig.to_string_lossy();
    let named = !shown.is_empty();
    require(!named || kubeconfig.is_absolute(), "api_server.kubeconfig", &shown, "it must be an absolute path")?;
    require(
        !(named && *in_cluster),
        "api_server.in_cluster",
        true,
        "there is a kubeconfig too; one server is possible",
    )?;
    let socket = file.socket.to_string_lossy();
    require(socket.len() <= SOCKET_PATH_BYTES, "socket", &socket, "a socket's path has at most 107 bytes")?;
    require(file.workers <= limits::WORKERS, "workers", file.workers, "there are at most 16")?;
    check_cpus(file)?;
    for (field, count, least) in [
        ("connections", file.connections, 1024),
        ("frame_memory.head_frames", file.frame_memory.head_frames, 1024),
        ("frame_memory.big_buffers", file.frame_memory.big_buffers, 16),
        ("flow_cache.ipv4_entries", file.flow_cache.ipv4_entries, 1024),
        ("flow_cache.ipv6_entries", file.flow_cache.ipv6_entries, 1024),
    ] {
        require(count >= least, field, count, "it is too small: at least 1024, for big_buffers 16")?;
        require(count <= LARGEST_COUNT, field, count, "it is larger than 1048576")?;
        require(!field.starts_with("flow_cache") || count.is_power_of_two(), field, count, "it is no power of two")?;
    }
    require(file.tunnel.port != 0, "tunnel.port", 0, "port 0 does not exist")
}

fn check_cpus(file: &File) -> Result<(), Wrong> {
    let cpus = &file.worker_cpus;
    let shown = format!("{cpus:?}");
    let fits = cpus.is_empty() || file.workers == 0 || cpus.len() == file.workers;
    require(fits, "worker_cpus", &shown, "it must name one CPU for each worker, or none")?;
    require(cpus.len() <= limits::WORKERS, "worker_cpus", &shown, "there are at most 16 workers")?;
    let distinct = cpus.iter().enumerate().all(|(at, cpu)| !cpus.iter().take(at).any(|earlier| earlier == cpu));
    require(distinct, "worker_cpus", &shown, "a CPU is named twice")
}

fn require(holds: bool, field: &'static str, value: impl ToString, reason: &'static str) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong { field, value: value.to_string(), reason }) }
}
