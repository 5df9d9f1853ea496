//! Calls by chance, with everything that may go wrong around them, counted by the hundred.
//!
//! Batches of up to six calls at once for a dozen sandboxes. What goes wrong, at moments from a seed: the plugin is killed,
//! the agent is killed and stays away for a while, the namespace is gone before or during a call, the disk is full before,
//! during or after a batch, also while an agent starts. DELs come twice, ADDs come for what is attached, CHECK, GC,
//! STATUS and VERSION come in between, and so does input that makes no sense, at the plugin and at the agent's socket.
//! After each hundred the runtime sends the DELs that it owes, and everything is compared.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::books::{self, Resources};
use super::numbers::Numbers;
use super::sandbox::{Known, Sandbox, network};
use super::world::{SocketAndState, World};
use crate::pod::{Answer, give_input};

/// Sandboxes of the runtime; every fourth has a veth.
const SANDBOXES: usize = 12;

/// Calls at once.
const AT_ONCE: u64 = 6;

/// Calls between two comparisons.
const HUNDRED: usize = 100;

/// Longest time until something goes wrong in a batch: about as long as calls take.
const LATEST: Duration = Duration::from_millis(80);

/// Memory that an agent of a debug build may take beyond what it had after its first hundreds of calls, in KiB: caches of
/// the allocator, one for each thread.
const MEMORY_KIB: u64 = 4 << 10;

/// What is counted.
#[derive(Default)]
pub(super) struct Tally {
    calls: usize,
    counts: BTreeMap<&'static str, usize>,
    /// What each agent held after each hundred.
    lives: Vec<Vec<Resources>>,
}

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// A call of a batch.
struct Call {
    sandbox: usize,
    verb: &'static str,
    plugin: Child,
    kill: Option<Duration>,
    lose: Option<Duration>,
    /// Whether its namespace is one that no call had before.
    renewed: bool,
    /// Whether its plugin ends by itself and its namespace stays.
    whole: bool,
}

/// What goes wrong with the node in a batch.
struct Weather {
    disk_full: Option<Duration>,
    agent_dies: Option<Duration>,
    /// Whether nothing of this happens, and the agent is there.
    fair: bool,
}

struct Run<'a> {
    world: &'a mut World,
    sandboxes: Vec<Sandbox>,
    numbers: Numbers,
    tally: Tally,
    /// Whether a call that made no sense was cut short: its container is owed a DEL, too.
    strangers: [bool; SANDBOXES],
    /// In the last quarter agents live, so that what grows has time to.
    agents_die: bool,
    disk_is_full: bool,
}

/// Makes so many calls.
pub(super) fn make_calls(world: &mut World, calls: usize, seed: u64) -> Tally {
    let sandboxes = (0..SANDBOXES).map(|number| Sandbox::create(number, number % 4 == 3)).collect();
    let (numbers, tally) = (Numbers::new(seed), Tally::default());
    let mut run =
        Run { world, sandboxes, numbers, tally, strangers: [false; SANDBOXES], agents_die: true, disk_is_full: false };
    run.tally.lives.push(Vec::new());
    let mut compared = 0;
    while run.tally.calls < calls {
        run.agents_die = run.tally.calls < calls - calls / 4;
        if run.numbers.percent(8) {
            run.collect();
        } else {
            run.batch();
        }
        if run.tally.calls / HUNDRED > compared {
            compared = run.tally.calls / HUNDRED;
            run.compare(&format!("seed {seed}, after {} calls", run.tally.calls));
        }
    }
    run.end(&format!("seed {seed}, at the end"));
    run.tally
}

impl Run<'_> {
    /// What goes wrong with the node. May start an agent that was away.
    fn weather(&mut self) -> Weather {
        if self.world.agent.is_none() && self.numbers.percent(60) {
            self.start_agent();
        }
        let away = self.world.agent.is_none();
        if away {
            self.tally.count("batches without an agent");
        }
        let disk_full = self.numbers.percent(14).then(|| self.numbers.time(LATEST));
        let disk_full = disk_full.map(|moment| if self.numbers.percent(50) { Duration::ZERO } else { moment });
        let dies = self.agents_die && !away && self.numbers.percent(7);
        let agent_dies = dies.then(|| self.numbers.time(LATEST));
        let fair = disk_full.is_none() && !self.disk_is_full && agent_dies.is_none() && !away;
        Weather { disk_full, agent_dies, fair }
    }

    fn fill(&mut self) {
        let pages = self.numbers.one_of(&[0, 0, 1, 2, 5]);
        self.world.disk.fill(pages);
        self.disk_is_full = true;
        self.tally.count("full disks");
    }

    fn start_agent(&mut self) {
        self.world.start_agent();
        self.tally.lives.push(Vec::new());
    }

    fn batch(&mut self) {
        let weather = self.weather();
        if weather.disk_full == Some(Duration::ZERO) {
            self.fill();
        }
        let count = 1 + self.numbers.next(AT_ONCE);
        let first = self.numbers.next(SANDBOXES as u64);
        let mut calls: Vec<Call> =
            (0..count).map(|number| self.start_call((first + number * 5) as usize % SANDBOXES)).collect();
        self.go_wrong(&weather, &mut calls);
        for call in calls {
            self.finish(call, weather.fair);
        }
        if self.numbers.percent(10) {
            self.talk_nonsense();
        }
        self.clear_up();
    }

    /// Lets a batch run, and what goes wrong in it.
    fn go_wrong(&mut self, weather: &Weather, calls: &mut [Call]) {
        let begin = Instant::now();
        let (mut disk, mut agent) = (weather.disk_full.filter(|moment| !moment.is_zero()), weather.agent_dies);
        let due = |moment: &mut Option<Duration>| moment.take_if(|moment| *moment <= begin.elapsed()).is_some();
        loop {
            if due(&mut disk) {
                self.fill();
            }
            if due(&mut agent) {
                self.world.kill_agent();
                self.tally.count("killed agents");
            }
            let mut waits = false;
            for call in &mut *calls {
                let ended = call.plugin.try_wait().expect("plugin").is_some();
                waits |= !ended;
                if due(&mut call.kill) && !ended {
                    call.plugin.kill().expect("killed");
                    self.tally.count("killed plugins");
                }
                if due(&mut call.lose) {
                    drop(self.sandboxes[call.sandbox].lose_namespace());
                    self.tally.count("namespaces gone during a call");
                }
            }
            if !waits && disk.is_none() && agent.is_none() {
                return;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// After a batch the disk gets room again, mostly, and an agent that was killed comes back, mostly, or later.
    fn clear_up(&mut self) {
        if self.world.agent.is_none() && self.numbers.percent(50) {
            self.start_agent();
        }
        if self.numbers.percent(70) {
            self.empty_disk();
        }
    }

    fn empty_disk(&mut self) {
        self.world.disk.empty();
        self.disk_is_full = false;
    }

    fn verb(&mut self, known: Known) -> &'static str {
        let share = self.numbers.next(100);
        let order: [&str; 6] = match known {
            Known::Detached => ["ADD", "DEL", "CHECK", "nonsense", "STATUS", "VERSION"],
            Known::Attached => ["DEL", "ADD", "CHECK", "nonsense", "STATUS", "VERSION"],
            Known::Nothing => ["DEL", "ADD", "CHECK", "nonsense", "STATUS", "VERSION"],
        };
        match share {
            0..60 => order[0],
            60..72 => order[1],
            72..84 => order[2],
            84..93 => order[3],
            93..98 => order[4],
            _ => order[5],
        }
    }

    fn start_call(&mut self, index: usize) -> Call {
        let verb = self.verb(self.sandboxes[index].known);
        let gone = self.sandboxes[index].namespace().is_none();
        // A runtime makes a new sandbox now and then, and forgets to.
        let mut renewed = false;
        if verb == "ADD" && (gone && self.numbers.percent(80) || self.numbers.percent(20)) {
            self.sandboxes[index].renew_namespace();
            renewed = true;
            // Whatever is attached is so in the namespace before.
            if self.sandboxes[index].known == Known::Attached {
                self.sandboxes[index].known = Known::Nothing;
            }
        }
        if matches!(verb, "ADD" | "DEL") && self.numbers.percent(10) && self.sandboxes[index].lose_namespace().is_some()
        {
            self.tally.count("namespaces gone before a call");
        }
        if verb == "DEL" && self.sandboxes[index].known == Known::Detached {
            self.tally.count("repeated DELs");
        }
        self.tally.calls += 1;
        self.tally.count(verb);
        let (mut plugin, input) = if verb == "nonsense" { self.nonsense(index) } else { self.sense(index, verb) };
        give_input(&mut plugin, &input);
        let kill = self.numbers.percent(15).then(|| self.numbers.time(LATEST));
        let lose = (matches!(verb, "ADD" | "DEL") && self.numbers.percent(8)).then(|| self.numbers.time(LATEST));
        Call { sandbox: index, verb, plugin, kill, lose, renewed, whole: kill.is_none() && lose.is_none() }
    }

    fn sense(&self, index: usize, verb: &str) -> (Child, Vec<u8>) {
        let (sandbox, directory) = (&self.sandboxes[index], self.world.directory());
        (sandbox.start(verb, directory), sandbox.configuration(verb, directory).to_string().into_bytes())
    }

    /// A call that makes no sense in one of many ways.
    fn nonsense(&mut self, index: usize) -> (Child, Vec<u8>) {
        let (sandbox, directory) = (&self.sandboxes[index], self.world.directory());
        let right = sandbox.configuration("ADD", directory);
        let with = |key: &str, value: Value| {
            let mut wrong = right.clone();
            wrong[key] = value;
            wrong.to_string().into_bytes()
        };
        let long = "x".repeat(300);
        let variables = [
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", ""),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", long.as_str()),
            ("CNI_COMMAND", "BOGUS"),
            ("CNI_NETNS", "relative"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_NETNS", "/dev/null"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=../..;K8S_POD_NAME=UPPER"),
        ];
        let text = right.to_string().into_bytes();
        let inputs = [
            Vec::new(),
            b"\xff\xfe\0\x01".to_vec(),
            text[..text.len() / 2].to_vec(),
            with("cniVersion", json!("9.9.9")),
            with("socket", json!(5)),
            with("name", json!("../..")),
            with(
                "runtimeConfig",
                json!({"portMappings": [{"hostPort": 99_999, "containerPort": 80, "protocol": "tcp"}]}),
            ),
            with("runtimeConfig", json!({"ips": ["10.1.0.9", "10.1.0.10"]})),
            with("runtimeConfig", json!({"mac": "ff:ff:ff:ff:ff:ff"})),
            with("prevResult", json!([1])),
        ];
        let which = self.numbers.next((variables.len() + inputs.len()) as u64) as usize;
        match variables.get(which) {
            Some(variable) => (sandbox.start_stranger("ADD", directory, &[*variable]), text),
            None => (sandbox.start_stranger("ADD", directory, &[]), inputs[which - variables.len()].clone()),
        }
    }

    /// What somebody says to the agent's socket who is no plugin.
    fn talk_nonsense(&mut self) {
        let socket = SocketAndState::of(self.world.directory()).socket;
        let body = self.numbers.one_of(&[
            "POST /v1/cni/add HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{\"container_id\":",
            "POST /v1/cni/del HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
            "POST /v1/cni/gc HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nnull",
            "\0\x01\x02",
        ]);
        if let Ok(mut stream) = UnixStream::connect(socket) {
            let _ = stream.write_all(body.as_bytes());
            self.tally.count("nonsense at the socket");
        }
    }

    fn finish(&mut self, call: Call, fair: bool) {
        let answer = Answer::of(call.plugin);
        let sandbox = &mut self.sandboxes[call.sandbox];
        let sure = fair && call.whole;
        let there = sandbox.namespace().is_some();
        let must = match call.verb {
            "CHECK" => there && sandbox.known == Known::Attached,
            "ADD" => there && (sandbox.known == Known::Detached || call.renewed),
            "DEL" | "STATUS" | "VERSION" => true,
            _ => false,
        };
        assert!(
            !sure || !must || answer.success,
            "{} of {} ({:?}) fails: {}",
            call.verb,
            sandbox.container,
            sandbox.known,
            answer.document
        );
        if call.verb == "nonsense" {
            assert!(!answer.success, "{}: nonsense is accepted", sandbox.container);
            self.strangers[call.sandbox] |= !sure;
        }
        if !answer.success && !answer.document.is_null() {
            self.tally.count("refusals");
        }
        sandbox.learn(call.verb, &answer, sure);
    }

    /// GC by itself, as the specification wants it.
    fn collect(&mut self) {
        let weather = self.weather();
        let complete = self.numbers.percent(30);
        let mut valid = Vec::new();
        let mut kept = vec![false; SANDBOXES];
        for (index, sandbox) in self.sandboxes.iter().enumerate() {
            kept[index] = sandbox.known == Known::Attached && (complete || self.numbers.percent(85));
            if kept[index] {
                valid.push(json!({"containerID": sandbox.container, "ifname": "eth0"}));
            }
        }
        self.tally.calls += 1;
        self.tally.count("GC");
        let mut input = network(self.world.directory());
        input["cni.dev/valid-attachments"] = json!(valid);
        let mut plugin = self.sandboxes[0].start("GC", self.world.directory());
        give_input(&mut plugin, input.to_string().as_bytes());
        let kill = self.numbers.percent(15).then(|| self.numbers.time(LATEST));
        let mut calls = [Call { sandbox: 0, verb: "GC", plugin, kill, lose: None, renewed: false, whole: true }];
        self.go_wrong(&weather, &mut calls);
        let [call] = calls;
        let answer = Answer::of(call.plugin);
        assert!(answer.success || kill.is_some() || !weather.fair, "GC fails: {}", answer.document);
        for (sandbox, _) in self.sandboxes.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
            sandbox.known = match answer.success {
                true => Known::Detached,
                false if sandbox.known == Known::Detached => Known::Detached,
                false => Known::Nothing,
            };
        }
        self.clear_up();
    }

    /// Sends the DELs that a runtime owes, and compares.
    fn compare(&mut self, when: &str) {
        self.empty_disk();
        if self.world.agent.is_none() {
            self.start_agent();
        }
        for sandbox in &mut self.sandboxes {
            if sandbox.known == Known::Nothing || sandbox.known == Known::Attached && sandbox.namespace().is_none() {
                self.tally.calls += self.world.delete(sandbox);
            }
        }
        for (number, owed) in self.strangers.iter_mut().enumerate().filter(|(_, owed)| **owed) {
            let mut plugin = self.sandboxes[number].start_stranger("DEL", self.world.directory(), &[]);
            give_input(&mut plugin, network(self.world.directory()).to_string().as_bytes());
            assert!(Answer::of(plugin).success, "{when}: stranger {number} cannot be removed");
            *owed = false;
            self.tally.calls += 1;
        }
        self.world.settled(&self.sandboxes, when);
        let now = books::resources(self.world);
        self.tally.lives.last_mut().expect("an agent was started").push(now);
    }

    fn end(&mut self, when: &str) {
        for sandbox in &mut self.sandboxes {
            self.tally.calls += self.world.delete(sandbox);
        }
        self.compare(when);
    }
}

impl Tally {
    /// Prints what happened.
    pub(super) fn print(&self, took: Duration) {
        println!("{} calls in {:.0} s, compared after each hundred: {:?}", self.calls, took.as_secs_f64(), self.counts);
        let longest = self.lives.iter().max_by_key(|life| life.len()).map_or(&[][..], Vec::as_slice);
        let span = |read: fn(&Resources) -> u64| {
            let all = longest.iter().map(read);
            format!("{:?} to {:?}", all.clone().min().unwrap_or_default(), all.max().unwrap_or_default())
        };
        println!(
            "{} agents; the longest lived {} hundreds with {} descriptors, {} threads, {} KiB",
            self.lives.len(),
            longest.len(),
            span(|held| held.descriptors as u64),
            span(|held| held.threads as u64),
            span(|held| held.memory_kib)
        );
        let memory: Vec<u64> = longest.iter().map(|held| held.memory_kib).collect();
        println!("its memory after each hundred, in KiB: {memory:?}");
    }

    /// That no agent's memory went on growing.
    pub(super) fn assert_bounded(&self) {
        for life in self.lives.iter().filter(|life| life.len() >= 6) {
            let (early, late) = life.split_at(life.len() / 3);
            let largest = |part: &[Resources]| part.iter().map(|held| held.memory_kib).max().unwrap_or_default();
            assert!(largest(late) <= largest(early) + MEMORY_KIB, "an agent grew from {early:?} to {late:?}");
        }
    }
}
