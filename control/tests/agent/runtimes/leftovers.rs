//! What there is besides the test itself: mounts, processes, network namespaces, interfaces of the node, control groups, and
//! what the library of CNI writes down. Taken before a runtime starts and after it ended, and compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_control::kernel::{NamespaceHandle, Netlink};

use super::isolation;

/// What podman leaves for the next container: a place to mount namespaces at, which `ip netns` makes too, its own images, and
/// the control group of its monitors.
const KEPT: [&str; 3] = ["mount /run/netns", "mount of images", "group conmon"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything, each with its sort.
pub(super) struct Present(BTreeSet<String>);

impl Present {
    /// What there is now.
    pub(super) fn now(node: &NamespaceHandle) -> Present {
        let sorts = [
            ("mount", mounts()),
            ("process", processes()),
            ("namespace", names(Path::new("/run/netns"))),
            ("record", names(Path::new("/var/lib/cni/results"))),
            ("interface", interfaces(node)),
            ("group", isolation::groups_within()),
        ];
        let all =
            sorts.into_iter().flat_map(|(sort, names)| names.into_iter().map(move |name| format!("{sort} {name}")));
        Present(all.collect())
    }

    /// Waits until nothing is there that was not there then.
    pub(super) fn wait_until_nothing_else(&self, node: &NamespaceHandle) {
        let end = Instant::now() + PATIENCE;
        loop {
            let Present(now) = Present::now(node);
            let more: Vec<&String> = now.difference(&self.0).filter(|name| !KEPT.contains(&name.as_str())).collect();
            if more.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left over: {more:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Where something is mounted.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let place = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    let shown = |place: String| if place.ends_with("/store/overlay") { "of images".to_owned() } else { place };
    table.lines().map(place).map(shown).collect()
}

/// Names of living processes. By number an agent that was started anew would be another.
fn processes() -> Vec<String> {
    let status = |entry: fs::DirEntry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let is_dead = field("State:")?.starts_with(['Z', 'X']);
        field("Name:").filter(|_| !is_dead).map(str::to_owned)
    };
    fs::read_dir("/proc").expect("processes").flatten().filter_map(status).collect()
}

/// Names in a directory, which may be missing.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn interfaces(node: &NamespaceHandle) -> Vec<String> {
    let links = Netlink::open_in(node).expect("netlink").links().expect("links");
    links.into_iter().map(|link| link.name).collect()
}
