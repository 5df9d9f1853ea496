//! The default file, and what is refused with which words.

use super::*;

fn parse(text: &str) -> Result<Configuration, String> {
    Configuration::parse(Path::new("agent.toml"), text).map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

#[test]
fn the_default_file_says_the_defaults_and_explains_each_field() {
    let text = Configuration::default_text();
    let printed: File = toml::from_str(&text).expect("the default file parses");
    assert_eq!(printed, File::default());
    assert_eq!(parse(&text), parse(""));
    let fields = text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
    assert_eq!(fields, 34, "{text}");
    let mut before = "";
    for line in text.lines() {
        assert!(!line.contains(" = ") || line.starts_with('#') || before.starts_with("# "), "no comment over {line}");
        before = line;
    }
}

#[test]
fn errors_name_file_and_field() {
    for (text, field) in [
        ("nod = 'a'", "nod"),
        ("node = 'A b'", "node"),
        ("workers = 'two'", "workers"),
        ("workers = -1", "workers"),
        ("workers = 17", "workers"),
        ("workers = 2\nworker_cpus = [1]", "worker_cpus"),
        ("worker_cpus = [1, 1]", "worker_cpus"),
        ("socket = 'agent.sock'", "socket"),
        ("[metrics]\naddress = 'everywhere'", "metrics.address"),
        ("state_directory = ''", "state_directory"),
        ("kept_directory = 'kept'", "kept_directory"),
        ("[frame_memory]\nhead_frames = 3", "frame_memory.head_frames"),
        ("[frame_memory]\nheads = 3", "heads"),
        ("[flow_cache]\nipv4_entries = 3000", "flow_cache.ipv4_entries"),
        ("[api_server]\nkubeconfig = 'here'", "api_server.kubeconfig"),
        ("[api_server]\nkubeconfig = '/k'\nin_cluster = true", "api_server.in_cluster"),
        ("[cni]\nconfiguration_directory = 'net.d'", "cni.configuration_directory"),
        ("connections = 10", "connections"),
        ("[tunnel]\nvni = 16777216", "tunnel.vni"),
        ("[tunnel]\nport = 0", "tunnel.port"),
        ("[policies]\nunknown_pods = 'shut'", "policies.unknown_pods"),
        ("[tunnels]\nport = 1", "tunnels"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains("agent.toml") && error.contains(field), "{text}: {error}");
    }
    let missing = Configuration::load(Path::new("/nonexistent/agent.toml")).expect_err("no such file");
    assert!(missing.to_string().contains("/nonexistent/agent.toml"));
}

#[test]
fn workers_follow_their_cpus_or_the_machine() {
    assert_eq!(parse("workers = 3").expect("valid").workers().get(), 3);
    assert_eq!(parse("worker_cpus = [0, 1]").expect("valid").workers().get(), 2);
    assert!((1..=4).contains(&parse("").expect("valid").workers().get()));
}
