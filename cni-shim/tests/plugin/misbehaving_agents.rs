//! Agents that are slow, close early, or answer nonsense: always an error in JSON, always in time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::caller::{Agent, call, configuration, pod, read_request};

/// What DEL and ADD give against such an agent; both must not take longer than the two seconds configured.
fn check(serve: fn(UnixStream), code: u64) {
    for command in ["ADD", "DEL"] {
        let agent = Agent::new(serve);
        let began = Instant::now();
        let outcome = call(&pod(command), &configuration("1.0.0", agent.socket()).to_string());
        assert!(began.elapsed() < Duration::from_secs(5), "{command} took {:?}", began.elapsed());
        if command == "DEL" && code == 5 {
            // The agent died while it worked: it does the rest when it is there again.
            assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (Some(0), ""), "{outcome:?}");
        } else {
            assert_eq!((outcome.exit_code, outcome.code()), (Some(1), Some(code)), "{outcome:?}");
        }
    }
}

#[test]
fn silent() {
    check(
        |mut stream| {
            // Takes the request and waits until the plugin gives up.
            let _ = stream.read_to_end(&mut Vec::new());
        },
        11,
    );
}

#[test]
fn one_byte_at_a_time_without_end() {
    check(
        |mut stream| {
            let mut text = b"HTTP/1.1 200 OK\r\nX: ".iter().chain(std::iter::repeat(&b'y'));
            while stream.write_all(&[*text.next().expect("endless")]).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        },
        11,
    );
}

#[test]
fn closes_at_once() {
    check(drop, 5);
}

#[test]
fn closes_after_the_request() {
    check(|stream| drop(read_request(&stream)), 5);
}

#[test]
fn closes_in_the_body() {
    check(
        |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"mac\":");
        },
        5,
    );
}

#[test]
fn speaks_another_protocol() {
    check(
        |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
        },
        6,
    );
}

#[test]
fn answers_garbage() {
    check(
        |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"mac\":");
        },
        6,
    );
    check(
        |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found");
        },
        6,
    );
}

#[test]
fn answers_without_end() {
    check(
        |mut stream| {
            read_request(&stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b' '; 4096]).is_ok() {}
        },
        6,
    );
}

#[test]
fn a_chunked_answer_is_an_answer() {
    let agent = Agent::new(|mut stream| {
        read_request(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n");
    });
    let outcome = call(&pod("DEL"), &configuration("1.0.0", agent.socket()).to_string());
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
}
