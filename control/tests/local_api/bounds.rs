//! Clients that send too much, too slowly or nonsense, and agents that take too long.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use millrace_cni::agent_client::{AgentClient, Answer};
use millrace_control::api::server::Limits;

use crate::test_agent::TestAgent;

fn client(agent: &TestAgent) -> AgentClient {
    AgentClient { socket: agent.socket(), timeout: Duration::from_secs(20), body_bytes: 1 << 20 }
}

fn body(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).expect("every answer of ours is JSON")
}

#[test]
fn nonsense_is_refused_in_json() {
    let agent = TestAgent::start(Limits::default());
    let client = client(&agent);
    for (path, input) in
        [("/v1/cni/add", &b""[..]), ("/v1/cni/add", b"{"), ("/v1/cni/del", b"[]"), ("/v1/cni/add", &[b' '; 2 << 20])]
    {
        let answer = client.post(path, input).expect("answered");
        assert_eq!((answer.status, &body(&answer)["code"]), (400, &6.into()), "{path}");
    }
    let answer = client.post("/v1/trace", b"{}").expect("answered");
    assert!(answer.status == 400 && body(&answer)["message"].is_string());
    let answer = client.get("/v2/show/ports").expect("answered");
    assert!(answer.status == 404 && body(&answer)["message"].is_string());
    assert_eq!(client.get("/v1/cni/add").expect("answered").status, 405);
    assert_eq!(client.get("/v1/show/flows?limit=many").expect("answered").status, 400);
    let mut stream = UnixStream::connect(agent.socket()).expect("connected");
    stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("closed by the agent");
    assert_eq!(client.get("/v1/show/status").expect("still served").status, 200);
}

#[test]
fn a_request_that_takes_too_long_is_answered_in_time() {
    let agent = TestAgent::start(Limits { request_time: Duration::from_millis(200), ..Limits::default() });
    let answer = client(&agent).get("/v1/show/neighbours").expect("answered");
    assert_eq!(answer.status, 504);
    let request = serde_json::json!({"network": "n", "container_id": "slow", "interface": "eth0",
        "network_namespace": agent.directory.join("attachments.json")});
    std::fs::write(agent.directory.join("attachments.json"), "").expect("a file to stand for a namespace");
    let answer = client(&agent).post("/v1/cni/add", request.to_string().as_bytes()).expect("answered");
    assert_eq!((answer.status, &body(&answer)["code"]), (503, &11.into()));
}

#[test]
fn a_client_that_stalls_is_cut_off_and_makes_room() {
    let limits = Limits { connections: 1, connection_time: Duration::from_millis(300), ..Limits::default() };
    let agent = TestAgent::start(limits);
    let began = Instant::now();
    let mut stalled = UnixStream::connect(agent.socket()).expect("connected");
    stalled.write_all(b"POST /v1/cni/add HTTP/1.1\r\nContent-Le").expect("sent");
    std::thread::sleep(Duration::from_millis(50));
    let answer = client(&agent).get("/v1/show/status").expect("served after the other was cut off");
    assert_eq!(answer.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(250), "only one connection at a time");
    let mut rest = Vec::new();
    stalled.read_to_end(&mut rest).expect("closed by the agent");
}

#[test]
fn a_client_that_stalls_does_not_hold_the_agent_at_its_end() {
    let mut agent = TestAgent::start(Limits { grace: Duration::from_millis(200), ..Limits::default() });
    let mut stalled = UnixStream::connect(agent.socket()).expect("connected");
    stalled.write_all(b"POST /v1/cni/add HTTP/1.1\r\nContent-Le").expect("sent");
    assert_eq!(client(&agent).get("/v1/show/status").expect("answered").status, 200);
    let began = Instant::now();
    agent.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}
