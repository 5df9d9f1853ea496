//! Files of the host: whole or not at all, whatever happens; errors that say what to do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;

/// A directory of a test; removed when dropped.
struct Place(PathBuf);

impl Place {
    fn make() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-installation-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("bin")).expect("directory");
        Place(path)
    }

    fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.bin()).expect("directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().into_string().expect("name")).collect();
        names.sort_unstable();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_plugin_is_installed_once() {
    let place = Place::make();
    let source = place.file("source", b"program");
    assert_eq!(plugin::install(&source, &place.bin()).expect("installed"), Installed::Written);
    let target = place.bin().join(plugin::NAME);
    let first = fs::metadata(&target).expect("there");
    assert_eq!((fs::read(&target).expect("read"), first.mode() & 0o7777), (b"program".to_vec(), 0o755));
    assert_eq!(plugin::install(&source, &place.bin()).expect("installed"), Installed::Unchanged);
    assert_eq!(fs::metadata(&target).expect("there").ino(), first.ino(), "nothing was written");
    // A mode that somebody took away is a difference too.
    fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).expect("set");
    assert_eq!(plugin::install(&source, &place.bin()).expect("installed"), Installed::Written);
    assert_eq!(place.names(), [plugin::NAME]);
    assert!(plugin::remove(&place.bin()).expect("removed"));
    assert!(!plugin::remove(&place.bin()).expect("nothing to remove"));
    assert!(!plugin::remove(Path::new("/nowhere/at/all")).expect("nothing to remove"));
    assert!(place.names().is_empty());
}

/// Two writers in turn, and a reader that never finds anything but one of both contents, whole.
#[test]
fn a_reader_finds_one_whole_content() {
    let place = Place::make();
    let contents = [vec![b'a'; 3_000_000], vec![b'b'; 2_000_000]];
    let sources = [place.file("a", &contents[0]), place.file("b", &contents[1])];
    plugin::install(&sources[0], &place.bin()).expect("installed");
    let ended = AtomicBool::new(false);
    let (mut seen, target) = ([0, 0], place.bin().join(plugin::NAME));
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    plugin::install(source, &place.bin()).expect("installed");
                }
            });
        }
        for _ in 0..200 {
            let content = fs::read(&target).expect("always there");
            let which = contents.iter().position(|whole| *whole == content);
            seen[which.unwrap_or_else(|| panic!("a piece of {} bytes", content.len()))] += 1;
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|times| *times > 0), "both contents were there: {seen:?}");
    assert_eq!(place.names(), [plugin::NAME]);
}

#[test]
fn what_a_killed_writer_left_is_replaced_and_no_configuration() {
    let place = Place::make();
    let left = format!(".{}.new", network_configuration::NAME);
    fs::write(place.bin().join(&left), "a piece").expect("written");
    assert_eq!(network_configuration::before_ours(&place.bin()), Vec::<String>::new());
    network_configuration::install(&place.bin(), "whole").expect("installed");
    assert_eq!(place.names(), [network_configuration::NAME]);
    assert_eq!(fs::read_to_string(place.bin().join(network_configuration::NAME)).expect("read"), "whole");
    // And one that was killed after that goes with the file.
    fs::write(place.bin().join(left), "a piece").expect("written");
    assert!(network_configuration::remove(&place.bin()).expect("removed"));
    assert!(place.names().is_empty());
}

#[test]
fn who_comes_before_is_named() {
    let place = Place::make();
    for name in ["05-other.conflist", "00-note.txt", "10-aaa.conf", "99-last.conflist", network_configuration::NAME] {
        fs::write(place.bin().join(name), "{}").expect("written");
    }
    assert_eq!(network_configuration::before_ours(&place.bin()), ["05-other.conflist", "10-aaa.conf"]);
}

#[test]
fn errors_say_what_is_wrong() {
    let place = Place::make();
    let (source, empty) = (place.file("source", b"program"), place.file("empty", b""));
    let said = |source: &Path, directory: &Path| plugin::install(source, directory).expect_err("refused").to_string();
    let absent = said(&source, &place.0.join("absent"));
    assert!(
        absent.contains("/absent is no directory: No such file") && absent.contains("container runtime"),
        "{absent}"
    );
    let file = said(&source, &source);
    assert!(file.contains("/source is no directory: Not a directory"), "{file}");
    let nothing = said(&place.0.join("nothing"), &place.bin());
    assert!(nothing.starts_with("could not read") && nothing.contains("/nothing: No such file"), "{nothing}");
    assert!(said(&empty, &place.bin()).ends_with("/empty is empty"));
    // A directory in the file's place: what is there stays.
    fs::create_dir(place.bin().join(plugin::NAME)).expect("directory");
    let taken = said(&source, &place.bin());
    assert!(taken.contains("could not replace") && taken.contains("Is a directory"), "{taken}");
    assert_eq!(place.names(), [plugin::NAME], "nothing is left beside it");
}
