//! The socket file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use millrace_control::api::server::Limits;
use millrace_control::api::socket::{Socket, SocketError};

use crate::test_agent::{TestAgent, directory};

#[test]
fn only_root_opens_it_and_it_goes_with_the_agent() {
    let mut agent = TestAgent::start(Limits::default());
    let mode = fs::metadata(agent.socket()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(Socket::bind(&agent.socket()), Err(SocketError::InUse(_))), "two agents");
    assert!(agent.millrace(&["show", "status"]).status.success(), "the first is not disturbed");
    agent.stop();
    assert!(!agent.socket().exists());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let directory = directory();
    let path = directory.join("deeper/agent.sock");
    fs::create_dir(directory.join("deeper")).expect("a directory");
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "nobody listens on it");
    let socket = Socket::bind(&path).expect("replaced");
    drop(socket);
    let other = UnixListener::bind(&path).expect("bound by another program, without our lock");
    assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
    drop(other);
    fs::remove_file(&path).and_then(|()| fs::write(&path, "precious")).expect("a file");
    assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
    fs::remove_dir_all(directory).expect("removed");
}
