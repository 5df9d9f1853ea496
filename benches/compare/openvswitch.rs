//! Open vSwitch with its datapath in user space, one in each node, with its database and sockets in a directory of its own. All
//! pods are on one segment, the tunnel ends at the internal port of a bridge that holds the underlay's interface, as its
//! user-space tunnels want it. Services are connection tracking and groups in the client's node.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use millrace_engine::port::namespace::NamespaceHandle;
use rustix::process::{Pid, Signal, kill_process};

use crate::backend::{Backend, Kind};
use crate::program::{finish, run};
use crate::services::{SERVICE_PORT, Services};
use crate::site::{Ends, POD_MTU, POD_NODES, SERVER_PORT, Site, UPLINK, node_address};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PATIENCE: Duration = Duration::from_secs(20);
const GATEWAY: &str = "10.244.255.254";
const GATEWAY_MAC: &str = "02:00:5e:00:53:fe";

pub(crate) struct OpenVSwitch {
    switches: Vec<Switch>,
    site: Site,
    ends: Ends,
}

/// The daemons of a node.
struct Switch {
    directory: PathBuf,
    /// The switch, then the database.
    daemons: Vec<Child>,
}

impl OpenVSwitch {
    pub(crate) fn build(kind: Kind) -> anyhow::Result<OpenVSwitch> {
        let site = Site::build(kind.name())?;
        let mut switches = Vec::new();
        for (number, node) in site.nodes.iter().enumerate() {
            // The polling threads have a core each, the other way round than the ends of a stream like it.
            let switch = Switch::start(node.handle(), &format!("{}-{number}", kind.name()))?;
            let set = |line: &str| switch.configure(node.handle(), line);
            let port = if kind == Kind::OvsAfxdp { "type=afxdp" } else { "type=system" };
            if kind == Kind::OvsAfxdp {
                set(&format!("set open_vswitch . other_config:pmd-cpu-mask={:#x}", 1 << (1 - number)))?;
            }
            // By the kernel's answer, not by /sys: that shows the namespace in which it was mounted.
            let link = run(node.handle(), &format!("ip -brief link show {UPLINK}"))?;
            let mac = link.split_whitespace().nth(2).context("an uplink without an address")?;
            set(&format!("add-br under -- set bridge under datapath_type=netdev other-config:hwaddr=\"{mac}\""))?;
            set(&format!("add-port under {UPLINK} -- set interface {UPLINK} {port}"))?;
            run(node.handle(), &format!("ip address add {}/24 dev under", node_address(number)))?;
            run(node.handle(), "ip link set under up")?;
            set("add-br pods -- set bridge pods datapath_type=netdev")?;
            set(&format!(
                "add-port pods tunnel -- set interface tunnel type=vxlan options:remote_ip={} options:local_ip={} options:key=1",
                node_address(1 - number),
                node_address(number)
            ))?;
            switches.push(switch);
        }
        site.join_pods(|number, _, port| {
            let (node, pod) = (POD_NODES[number], site.pods[number].handle());
            // No checksum comes with a frame that a user-space switch sends.
            run(pod, "ethtool -K eth0 tx off")?;
            run(pod, &format!("ip link set eth0 address {} mtu {POD_MTU}", pod_mac(number)))?;
            run(pod, &format!("ip address add {}/16 dev eth0", pod_address(number)))?;
            run(pod, &format!("ip neighbour add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0"))?;
            run(pod, &format!("ip route add default via {GATEWAY}"))?;
            let kind = if kind == Kind::OvsAfxdp { "type=afxdp" } else { "type=system" };
            let line = format!("add-port pods {port} -- set interface {port} {kind}");
            switches[node].configure(site.nodes[node].handle(), &line)
        })?;
        let ends = site.ends([0, 1, 2].map(pod_address));
        Ok(OpenVSwitch { switches, site, ends })
    }

    fn flows(&self, line: &str, input: &str) -> anyhow::Result<()> {
        let mut command = self.switches[0].program("ovs-ofctl");
        command.args(["-O", "OpenFlow13"]).args(line.split_whitespace());
        finish(self.site.nodes[0].handle(), command, input).with_context(|| line.to_owned())?;
        Ok(())
    }
}

impl Backend for OpenVSwitch {
    fn site(&self) -> &Site {
        &self.site
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn program(&mut self, services: Services) -> anyhow::Result<Duration> {
        let far = pod_address(2);
        // What was there before goes untimed.
        self.flows("del-groups pods", "")?;
        let (mut groups, mut flows) = (String::new(), String::new());
        for (place, address) in services.addresses().enumerate() {
            write!(groups, "group_id={},type=select", place + 1)?;
            for endpoint in services.endpoints(place) {
                write!(groups, ",bucket=actions=ct(commit,nat(dst={endpoint}:{SERVER_PORT}),table=2)")?;
            }
            groups.push('\n');
            writeln!(
                flows,
                "table=1,priority=100,ct_state=+trk+new,tcp,nw_dst={address},tp_dst={SERVICE_PORT},actions=group:{}",
                place + 1
            )?;
        }
        write!(
            flows,
            "table=0,priority=100,tcp,nw_dst=10.96.0.0/12,actions=ct(nat,table=1)\n\
             table=0,priority=100,tcp,nw_src={far},tp_src={SERVER_PORT},actions=ct(nat,table=3)\n\
             table=0,priority=0,actions=NORMAL\n\
             table=1,priority=200,ct_state=+trk-new,tcp,actions=resubmit(,2)\n\
             table=2,priority=100,tcp,nw_dst={far},actions=mod_dl_dst:{},NORMAL\n\
             table=3,priority=0,actions=NORMAL\n",
            pod_mac(2)
        )?;
        let start = Instant::now();
        self.flows("add-groups pods -", &groups)?;
        self.flows("add-flows pods -", &flows)?;
        Ok(start.elapsed())
    }

    fn processes(&self) -> Vec<Pid> {
        self.switches.iter().filter_map(|switch| switch.daemons.first()).map(Pid::from_child).collect()
    }
}

impl Switch {
    fn start(node: &NamespaceHandle, name: &str) -> anyhow::Result<Switch> {
        let directory = std::env::temp_dir().join(format!("millrace-compare-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut switch = Switch { directory, daemons: Vec::new() };
        let (database, socket) = (switch.directory.join("conf.db"), switch.directory.join("db.sock"));
        let mut create = switch.program("ovsdb-tool");
        create.arg("create").arg(&database).arg(SCHEMA);
        finish(node, create, "").context("ovsdb-tool create")?;
        let mut server = switch.program("ovsdb-server");
        server.arg(&database).arg(format!("--remote=punix:{}", socket.display()));
        server.arg(format!("--unixctl={}", switch.directory.join("db.ctl").display()));
        let log = |name: &str| fs::File::create(switch.directory.join(name));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log("db.log")?);
        let database = server.spawn().context("ovsdb-server")?;
        switch.daemons.push(database);
        let end = Instant::now() + PATIENCE;
        while !socket.exists() {
            ensure!(Instant::now() < end, "ovsdb-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        switch.configure(node, "--no-wait init")?;
        let mut daemon = switch.program("ovs-vswitchd");
        daemon.arg(format!("unix:{}", socket.display()));
        daemon.arg(format!("--unixctl={}", switch.directory.join("switch.ctl").display()));
        daemon.stdin(Stdio::null()).stdout(Stdio::null());
        daemon.stderr(fs::File::create(switch.directory.join("switch.log"))?);
        let daemon = node.enter(|| daemon.spawn())?.context("ovs-vswitchd")?;
        switch.daemons.insert(0, daemon);
        Ok(switch)
    }

    /// A program of Open vSwitch with everything it would put elsewhere put into the directory.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &self.directory);
        }
        command
    }

    /// Runs `ovs-vsctl` and says so if the switch could not do what the database now wants.
    fn configure(&self, node: &NamespaceHandle, line: &str) -> anyhow::Result<()> {
        let mut command = self.program("ovs-vsctl");
        command.arg(format!("--db=unix:{}", self.socket().display())).arg("--timeout=20").args(line.split_whitespace());
        finish(node, command, "").with_context(|| line.to_owned())?;
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        Path::new(&self.directory).join("db.sock")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // The child is ours and not waited for, so its number is still its own. One that is stopped must go on to end.
            for signal in [Signal::CONT, Signal::TERM] {
                let _ = kill_process(Pid::from_child(daemon), signal);
            }
            let end = Instant::now() + PATIENCE;
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn pod_address(number: usize) -> IpAddr {
    IpAddr::from([10, 244, POD_NODES[number] as u8, number as u8 + 2])
}

fn pod_mac(number: usize) -> String {
    format!("02:00:5e:00:53:{:02x}", number + 0x10)
}
