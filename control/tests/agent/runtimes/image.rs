//! The image that containers are made of: busybox, and a page that says who answers and to whom.
//!
//! It is written as the archive that `docker save` writes, which podman and containerd both read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::directory::Directory;

/// Its name.
pub(super) const NAME: &str = "localhost/millrace-web:1";
/// What serves the page, and where.
pub(super) const SERVE: [&str; 6] = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"];
/// The page.
pub(super) const PAGE: &str = "/cgi-bin/who";
/// The variable of a container by which the page knows its name.
pub(super) const VARIABLE: &str = "NAME";

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 6] = ["sh", "httpd", "wget", "nc", "timeout", "sleep"];
const SCRIPT: &str = "#!/bin/sh\nprintf '\\r\\n'\necho \"$NAME $REMOTE_ADDR\"\n";

fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program of every Debian");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether this machine's busybox runs where there is nothing else.
pub(super) fn can_be_made() -> bool {
    let directory = Directory::create();
    let alone = directory.file("alone");
    fs::create_dir(&alone).expect("directory");
    let copied = fs::copy(BUSYBOX, alone.join("busybox")).is_ok();
    copied
        && Command::new("chroot").arg(&alone).args(["/busybox", "true"]).output().is_ok_and(|ran| ran.status.success())
}

/// Writes it; returns the archive.
pub(super) fn write(directory: &Directory) -> PathBuf {
    let place = directory.file("image");
    let root = place.join("root");
    for within in ["bin", "dev", "etc", "proc", "sys", "tmp", "www/cgi-bin"] {
        fs::create_dir_all(root.join(within)).expect("directory");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("copied");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("link");
    }
    let page = root.join(format!("www{PAGE}"));
    fs::write(&page, SCRIPT).expect("written");
    fs::set_permissions(&page, fs::Permissions::from_mode(0o755)).expect("executable");
    let layer = place.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&layer).arg("."));
    pack(&place, &layer)
}

fn pack(place: &Path, layer: &Path) -> PathBuf {
    let digest = run(Command::new("sha256sum").arg(layer));
    let digest = digest.split_whitespace().next().expect("a digest").to_owned();
    // Without a container's own command, as the one that holds a pod's namespaces: nothing is served.
    let configuration = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "3600"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(place.join("config.json"), configuration.to_string()).expect("written");
    fs::write(place.join("manifest.json"), manifest.to_string()).expect("written");
    let archive = place.join("image.tar");
    run(Command::new("tar").arg("-C").arg(place).arg("-cf").arg(&archive).args([
        "manifest.json",
        "config.json",
        "layer.tar",
    ]));
    archive
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
