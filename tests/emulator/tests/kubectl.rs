//! The emulator through `kubectl`: what people type works. Without `kubectl` the tests are reported as ignored, with the
//! reason.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Completion, Trial};
use millrace_emulator::{Emulator, Options};

struct Kubectl {
    kubeconfig: std::path::PathBuf,
    _emulator: Emulator,
}

impl Kubectl {
    fn start(test: &str) -> Kubectl {
        let emulator = Emulator::start(Options::default()).expect("emulator");
        let kubeconfig = std::env::temp_dir().join(format!("millrace-kubectl-{}-{test}", std::process::id()));
        std::fs::write(&kubeconfig, emulator.kubeconfig()).expect("written");
        Kubectl { kubeconfig, _emulator: emulator }
    }

    /// Runs it with this on its standard input; what it printed if it succeeded.
    fn run(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--cache-dir", "/dev/null"]).args(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("waited");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

const POOL: &str = "\
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: pods}
spec: {cidr: 10.1.0.0/16}
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: http, port: 80}]}
";

fn people_get_apply_and_delete() {
    let kubectl = Kubectl::start("people");
    let definitions = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds.yaml");
    let apply = ["apply", "--validate=false", "-f"];
    let made = kubectl.run(&[&apply[..], &[definitions]].concat(), "").expect("definitions");
    assert!(made.contains("ippools.millrace.dev created"), "{made}");
    let waited = ["wait", "--for=condition=Established", "--timeout=10s", "-f", definitions];
    kubectl.run(&waited, "").expect("established");

    let from_input = [&apply[..], &["-"]].concat();
    for (text, name) in [(POOL, "ippool.millrace.dev/pods"), (SERVICE, "service/web")] {
        assert_eq!(kubectl.run(&from_input, text), Ok(format!("{name} created")));
        assert_eq!(kubectl.run(&from_input, text), Ok(format!("{name} unchanged")));
    }
    assert_eq!(
        kubectl.run(&from_input, &POOL.replace("10.1.", "10.2.")),
        Ok("ippool.millrace.dev/pods configured".to_owned())
    );
    assert_eq!(
        kubectl.run(&from_input, &SERVICE.replace("port: 80", "port: 81")),
        Ok("service/web configured".to_owned())
    );
    assert_eq!(
        kubectl.run(&["get", "ippool", "pods", "-o", "jsonpath={.spec.cidr}"], ""),
        Ok("10.2.0.0/16".to_owned())
    );
    assert_eq!(
        kubectl.run(&["get", "svc", "-l", "app=web", "-o", "jsonpath={.items[*].spec.ports[*].port}"], ""),
        Ok("81".to_owned())
    );
    let table = kubectl.run(&["get", "ippools,services,nodes", "-A"], "").expect("get");
    assert!(table.contains("ippool.millrace.dev/pods") && table.contains("service/web"), "{table}");
    let missing = kubectl.run(&["get", "pod", "nobody"], "").expect_err("nobody is there");
    assert!(missing.contains("NotFound"), "{missing}");

    kubectl.run(&["label", "svc", "web", "team=a"], "").expect("labelled");
    kubectl.run(&["annotate", "ippool", "pods", "note=a"], "").expect("annotated");
    let patch = ["patch", "ippool", "pods", "--type=merge", "-p", "{\"spec\":{\"blockSize\":28}}"];
    kubectl.run(&patch, "").expect("patched");
    assert_eq!(kubectl.run(&["delete", "svc", "web"], ""), Ok("service \"web\" deleted".to_owned()));
    assert_eq!(kubectl.run(&["delete", "ippool", "--all"], ""), Ok("ippool.millrace.dev \"pods\" deleted".to_owned()));
}

fn people_apply_on_the_server() {
    let kubectl = Kubectl::start("server");
    let apply = |manager: &str, text: &str| {
        let manager = format!("--field-manager={manager}");
        kubectl.run(&["apply", "--validate=false", "--server-side", &manager, "-f", "-"], text)
    };
    assert_eq!(apply("one", SERVICE), Ok("service/web serverside-applied".to_owned()));
    let changed = SERVICE.replace("10.96.0.10", "10.96.0.11");
    let conflict = apply("two", &changed).expect_err("one owns it");
    assert!(conflict.contains("conflict with \"one\"") && conflict.contains(".spec.clusterIP"), "{conflict}");
    assert_eq!(apply("one", &changed), Ok("service/web serverside-applied".to_owned()));
}

const EVENT: &str = "\
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: web.1, namespace: default}
eventTime: 2026-01-01T00:00:00.000000Z
reportingController: millrace.dev/agent
reportingInstance: a
action: Configure
type: Warning
reason: AddressContested
note: 10.96.0.10:80 TCP belongs to Service default/first already
regarding: {apiVersion: v1, kind: Service, name: web, namespace: default}
";

fn people_read_events() {
    let kubectl = Kubectl::start("events");
    let create = ["create", "--validate=false", "-f", "-"];
    assert_eq!(kubectl.run(&create, EVENT), Ok("event.events.k8s.io/web.1 created".to_owned()));
    let table = kubectl.run(&["get", "events", "-o", "custom-columns=R:.reason,M:.message,O:.involvedObject.name"], "");
    let table = table.expect("get");
    assert!(
        table.contains("AddressContested") && table.contains("belongs to Service") && table.contains("web"),
        "{table}"
    );
    let long = kubectl.run(&create, &EVENT.replace("web.1", "web.2").replace("10.96.0.10:80", &"x".repeat(1025)));
    assert!(long.expect_err("a note may be so long").contains("1024"));
}

fn main() -> ExitCode {
    let version = Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).status();
    let is_here = version.is_ok();
    let tests: [(&str, fn()); 3] = [
        ("people_get_apply_and_delete", people_get_apply_and_delete),
        ("people_apply_on_the_server", people_apply_on_the_server),
        ("people_read_events", people_read_events),
    ];
    let trial = |(name, run): (&'static str, fn())| {
        Trial::ignorable_test(name, move || {
            if !is_here {
                return Ok(Completion::ignored_with("needs the program kubectl (tried with 1.32)"));
            }
            run();
            Ok(Completion::Completed)
        })
    };
    libtest_mimic::run(&Arguments::from_args(), tests.map(trial).into()).exit_code()
}
