//! Open vSwitch with its user-space datapath: a database, a switch daemon and their sockets in a directory of their own,
//! no kernel module. The tunnels' end is the internal port of a bridge that holds the underlay's wire, as its user-space
//! tunnels want it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::far::{Far, GUESTS, TapGuests};
use crate::wires::{SERVICE_WIRE, SHARED, TUNNELLED, UNDERLAY, VXLAN_PORT, WIRE, Wires, run, underlay_mac};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PATIENCE: Duration = Duration::from_secs(20);

struct OpenVSwitch {
    guests: TapGuests,
    /// The switch daemon, then the database.
    daemons: Vec<Child>,
    directory: PathBuf,
}

impl Far for OpenVSwitch {
    fn send(&mut self, guest: &str, bytes: &[u8]) {
        self.guests.send(guest, bytes);
    }

    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        self.guests.receive()
    }

    fn hands_ect1_over(&self) -> bool {
        false
    }
}

impl Drop for OpenVSwitch {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // The child is ours and not waited for, so its number is still its own.
            let _ = kill_process(Pid::from_child(daemon), Signal::TERM);
            let end = Instant::now() + PATIENCE;
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A program of Open vSwitch with everything it would put elsewhere put into `directory`.
fn program(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(variable, directory);
    }
    command
}

pub(crate) fn make(wires: &Wires) -> Result<Box<dyn Far>, String> {
    if !Path::new(SCHEMA).exists() {
        return Err("Open vSwitch is not installed; apt-get install openvswitch-switch".to_owned());
    }
    let directory = std::env::temp_dir().join(format!("{}-ovs", wires.unique));
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let (database, socket) = (directory.join("conf.db"), directory.join("db.sock"));
    let create = program("ovsdb-tool", &directory).arg("create").arg(&database).arg(SCHEMA).output();
    run(create, "ovsdb-tool create")?;
    let guests = TapGuests::create(wires.sides[1].handle(), &GUESTS);
    let mut switch = OpenVSwitch { guests, daemons: Vec::new(), directory: directory.clone() };
    let log = |name: &str| std::fs::File::create(directory.join(name)).map_err(|error| error.to_string());
    let mut server = program("ovsdb-server", &directory);
    server.arg(&database).arg(format!("--remote=punix:{}", socket.display()));
    server.arg(format!("--unixctl={}", directory.join("db.ctl").display())).stderr(log("db.log")?);
    switch.daemons.push(server.spawn().map_err(|error| format!("ovsdb-server: {error}"))?);
    let mut daemon = program("ovs-vswitchd", &directory);
    daemon.arg(format!("unix:{}", socket.display()));
    daemon.arg(format!("--unixctl={}", directory.join("switch.ctl").display())).stderr(log("switch.log")?);
    let spawned = wires.sides[1].handle().enter(|| daemon.spawn()).map_err(|error| error.to_string())?;
    switch.daemons.insert(0, spawned.map_err(|error| format!("ovs-vswitchd: {error}"))?);
    configure(wires, &directory, &socket)?;
    Ok(Box::new(switch))
}

fn configure(wires: &Wires, directory: &Path, socket: &Path) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while !socket.exists() {
        if Instant::now() > end {
            return Err("ovsdb-server does not answer".to_owned());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let set = |line: &str| {
        let mut command = program("ovs-vsctl", directory);
        command.arg(format!("--db=unix:{}", socket.display())).arg("--timeout=20").args(line.split_whitespace());
        run(command.output(), line)
    };
    let (mac, [near, own, third]) = (underlay_mac(1), [0, 1, 2].map(|side| wires.end(side)));
    set("--no-wait init")?;
    // Two tags are looked at, since one of them is the service's.
    set("--no-wait set open_vswitch . other_config:vlan-limit=2")?;
    // The wire's MAC address is the internal port's, too: frames for the tunnel are sent there.
    set(&format!("add-br under -- set bridge under datapath_type=netdev other-config:hwaddr=\"{mac}\""))?;
    set(&format!("add-port under {UNDERLAY}"))?;
    wires.run_far("ip link set under up")?;
    wires.address(1, "under");
    set("add-br lan -- set bridge lan datapath_type=netdev other-config:mac-table-size=1024")?;
    set(&format!("add-port lan {WIRE} trunks=10,20 tag=1 vlan_mode=native-untagged"))?;
    set(&format!("add-port lan {SERVICE_WIRE} trunks=40"))?;
    set("add-port lan f1 tag=1")?;
    set("add-port lan f10 tag=10")?;
    set("add-port lan fq tag=40 vlan_mode=dot1q-tunnel other-config:qinq-ethtype=802.1ad")?;
    let vlans: Vec<String> = TUNNELLED.iter().chain([&SHARED]).map(|(vlan, _)| vlan.to_string()).collect();
    set(&format!("add-port lan ft trunks=10,20,{}", vlans.join(",")))?;
    let tunnel = |name: &str, (vlan, vni): (u16, u32), remote: IpAddr, protected: bool| {
        set(&format!(
            "add-port lan {name} tag={vlan} protected={protected} -- set interface {name} type=vxlan \
             options:remote_ip=\"{remote}\" options:local_ip=\"{own}\" options:key={vni} options:dst_port={VXLAN_PORT}"
        ))
    };
    for segment in TUNNELLED {
        tunnel(&format!("vx{}", segment.0), segment, near, false)?;
    }
    // What comes out of one tunnel does not go into another: protected ports do not meet.
    tunnel("vxnear", SHARED, near, true)?;
    tunnel("vxthird", SHARED, third, true)
}
