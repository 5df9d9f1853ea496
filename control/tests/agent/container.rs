//! The agent with the rights of its container, and no more: those that `deploy/millrace.yaml` lists.
//!
//! A container as a runtime makes one, but for its cgroup and seccomp filter: a root of its own with nothing in it but what is
//! mounted, `/proc/sys` read-only, a `/dev` of a few devices, the namespaces of pods by propagation, the listed capabilities as
//! bounding set and no way to gain others. The program is linked dynamically in tests, so the machine's libraries are there too.

use std::fs;
use std::path::Path;
use std::process::Command;

use millrace_control::api::model::StatusReport;
use millrace_control::kernel::{Netlink, sysctl};
use serde_json::{Value, json};

use crate::agent_process::AgentOptions;
use crate::cluster::{AF_XDP, Cluster, NODES, POOLS, UPLINK, Underlay, node_object, uplink_object};
use crate::directory::Directory;
use crate::host::{host, pings};
use crate::pod::Pod;
use crate::root_tests::needs_program;
use crate::traffic;

/// Names of capabilities from number 0 on (include/uapi/linux/capability.h).
const ALL: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// Makes the container's root and runs what follows in it. Arguments: the program's directory, the test's directory.
const MAKE: &str = r#"
set -eu
program=$1 files=$2
shift 2
root=$files/container.$$
mkdir "$root"
mount -t tmpfs container "$root"
cd "$root"
mkdir -p proc sys tmp dev/net run/netns host/proc/sys/net ".$program" ".$files"
for directory in /usr /bin /sbin /lib /lib64; do
  [ -d "$directory" ] || continue
  mkdir ".$directory"
  mount --rbind "$directory" ".$directory"
done
mount --bind "$program" ".$program"
mount --bind "$files" ".$files"
mount --rbind /run/netns run/netns
mount --rbind /sys sys
for device in null zero urandom net/tun; do
  : >"dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mount --bind /proc/sys/net host/proc/sys/net
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -o remount,ro .
exec chroot . "$@"
"#;

/// What a container of a DaemonSet lists, in lower case: of the first container, or of the first that runs before it.
fn listed(file: &str, containers: &str) -> Vec<String> {
    let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(path).expect(file)).expect("YAML");
    let set = documents.iter().find(|document| document["kind"] == "DaemonSet").expect("a DaemonSet");
    let capabilities = &set["spec"]["template"]["spec"][containers][0]["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], json!(["ALL"]), "{file}, {containers}");
    let added = capabilities["add"].as_array().into_iter().flatten();
    let names: Vec<String> = added.map(|name| name.as_str().expect("text").to_lowercase()).collect();
    assert!(names.iter().all(|name| ALL.contains(&name.as_str())), "{names:?}");
    names
}

/// What the agent's container lists.
fn listed_for_agent() -> Vec<String> {
    listed("millrace.yaml", "containers")
}

/// The words that run a program in a container with these capabilities. As little memory may be locked as systemd lets
/// services have by default, 8 MiB.
fn container(directory: &Directory, capabilities: &[String]) -> &'static [&'static str] {
    let program = Path::new(env!("CARGO_BIN_EXE_millrace")).parent().expect("a directory");
    let dropped: Vec<String> = ALL
        .iter()
        .filter(|name| !capabilities.iter().any(|kept| kept == *name))
        .map(|name| format!("-{name}"))
        .collect();
    let words = [
        "prlimit",
        "--memlock=8388608:8388608",
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        MAKE,
        "sh",
    ];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    words.extend([program.display().to_string(), directory.path().display().to_string()]);
    words.extend(["setpriv", "--no-new-privs", "--inh-caps=-all"].map(str::to_owned));
    words.push(format!("--bounding-set={}", dropped.join(",")));
    words.into_iter().map(|word| &*word.leak()).collect::<Vec<&str>>().leak()
}

fn needs_programs() {
    needs_program("setpriv", "util-linux");
    needs_program("unshare", "util-linux");
}

pub(crate) fn an_agent_needs_the_rights_of_its_container() {
    needs_programs();
    let underlay = Underlay::create(1);
    let under = container(&underlay.directory, &listed_for_agent());
    let options = AgentOptions { under, ..AgentOptions::default() };
    let Cluster { agents: [first, second], underlay } = Cluster::with_uplinks(underlay, [AF_XDP; 2], options);
    let directory = &underlay.directory;
    let held = |process: u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("status");
        let line =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("line").trim().to_owned();
        (
            u64::from_str_radix(&line("CapEff:"), 16).expect("a set"),
            line("CapBnd:") == line("CapEff:"),
            line("NoNewPrivs:"),
        )
    };
    let wanted = listed_for_agent()
        .iter()
        .filter_map(|name| ALL.iter().position(|known| known == name))
        .fold(0, |set, bit| set | 1 << bit);
    for agent in [&first, &second] {
        assert_eq!(held(agent.process()), (wanted, true, "1".to_owned()), "rights are as listed");
    }
    directory.write_objects(
        "pods.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a2, namespace: default, annotations: {millrace.dev/interface: veth}}\n\
         spec: {nodeName: a, containers: []}\n",
    );
    let [a1, a2, b1] = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    // Rules, routes and settings of the host.
    let ports = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "127.0.0.1"},
    ]}});
    let answer = a1.call_with("ADD", directory, &ports);
    let addresses = answer.addresses();
    let a1_end = traffic::Endpoint { name: "a1".to_owned(), namespace: a1.namespace.handle().clone(), addresses };
    let [a2_end, b1_end] = [&a2, &b1].map(|pod| pod.add(directory));
    for (one, other) in [(&a1_end, &b1_end), (&a2_end, &b1_end), (&a1_end, &a2_end)] {
        traffic::check(one, other);
    }
    let near = host(&underlay, 0);
    pings(&near, &b1_end);
    pings(&a1_end, &near);
    assert_eq!(answer.code(), None);
    // Restarted, it takes up what is there.
    drop(first);
    let first = underlay.start(0, options);
    traffic::check(&a1_end, &b1_end);
    traffic::check(&a2_end, &b1_end);
    assert_eq!(first.status().pods, 2);
    [&first, &second].iter().for_each(|agent| agent.assert_sound());
    b1.delete(directory);
    assert!(b1.interface().is_none());
    [&first, &second].iter().for_each(|agent| agent.assert_sound());

    // The other containers: one puts the plugin into place with no right at all, one restores the node.
    let plugins = directory.file("a.bin");
    fs::create_dir(&plugins).expect("directory");
    let run = |capabilities: &[String], words: &[&str]| {
        let under = container(directory, capabilities);
        let mut command = Command::new(under[0]);
        command.args(&under[1..]).arg(env!("CARGO_BIN_EXE_millrace")).args(words);
        command.arg("--plugin-directory").arg(&plugins).arg("--configuration-directory").arg(&plugins);
        command.arg("--state-directory").arg(directory.file("a.state")).arg("--socket").arg(directory.file("a.sock"));
        let output = underlay.nodes[0].handle().enter(|| command.output()).expect("entered").expect("program");
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    let none = listed("millrace.yaml", "initContainers");
    assert!(none.is_empty(), "{none:?}");
    run(&none, &["install", "--plugin-only"]);
    assert!(plugins.join("millrace-cni").is_file());
    drop(first);
    run(&listed("uninstall.yaml", "initContainers"), &["uninstall"]);
    assert!(!plugins.join("millrace-cni").exists());
    assert!([&a1, &a2].iter().all(|pod| pod.interface().is_none()), "pods lost their interfaces");
    let mut netlink = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink");
    let names: Vec<String> = netlink.links().expect("links").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", UPLINK]);
    let reserved = sysctl::read(underlay.nodes[0].handle(), "ipv4/ip_local_reserved_ports").expect("setting");
    assert_eq!(reserved, "", "ports of the host are its own again");
}

/// What an agent says that lacks one, or the plugin where the agent does not notice before a pod comes.
const WITHOUT: [(&str, &str); 4] = [
    ("net_admin", "lacks CAP_NET_ADMIN"),
    ("net_raw", "lacks CAP_NET_RAW"),
    ("sys_admin", "Operation not permitted"),
    ("ipc_lock", "bytes of memory may be locked"),
];

/// None of the list is there for nothing.
pub(crate) fn each_right_of_the_container_is_needed() {
    needs_programs();
    let underlay = Underlay::create(1);
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object(0)];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    let all = listed_for_agent();
    let mut known: Vec<&str> = WITHOUT.iter().map(|(name, _)| *name).collect();
    let mut sorted: Vec<&str> = all.iter().map(String::as_str).collect();
    known.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(sorted, known, "what breaks without each is known");
    for (missing, words) in WITHOUT {
        let kept: Vec<String> = all.iter().filter(|name| *name != missing).cloned().collect();
        let under = container(&underlay.directory, &kept);
        let agent = underlay.start(0, AgentOptions { uplink: false, under, ..AgentOptions::default() });
        let pod = Pod::create(&format!("without-{}", missing.replace('_', "-")), NODES[0].0);
        let said = |status: &StatusReport| status.problems.iter().any(|problem| problem.message.contains(words));
        let answer = if missing == "sys_admin" { pod.call("ADD", &underlay.directory).document } else { Value::Null };
        if !answer.to_string().contains(words) {
            let status = agent.wait_for_status(|status| said(status));
            println!(
                "without {missing}: {:?}",
                status.problems.iter().map(|problem| &problem.message).collect::<Vec<_>>()
            );
        } else {
            println!("without {missing}: {answer}");
        }
        let _ = pod.call("DEL", &underlay.directory);
    }
}
