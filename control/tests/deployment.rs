//! `deploy/`: the chart, what it renders to, and that a cluster takes it as it stands.
//!
//! Helm's own engine renders; it comes as a library for Python. Where it or `kubectl` is not installed, the tests that need
//! them are reported as ignored, with the reason. `MILLRACE_WRITE_DOCS=1` writes the rendered files anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use libtest_mimic::{Arguments, Completion, Trial};
use millrace_emulator::{Emulator, Options};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const NAMESPACE: &str = "millrace-system";
/// The rendered files, the values they are rendered with, and the templates if not all.
const RENDERED: [(&str, &str, &[&str]); 2] = [
    ("millrace.yaml", r#"{"createNamespace": true}"#, &[]),
    ("uninstall.yaml", r#"{"uninstall": true}"#, &["daemonset.yaml"]),
];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(DEPLOY).join(name)).unwrap_or_else(|error| panic!("deploy/{name}: {error}"))
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

fn of_kind(name: &str, kind: &str) -> Vec<Value> {
    documents(&read(name)).into_iter().filter(|document| document["kind"] == kind).collect()
}

fn the_one(name: &str, kind: &str) -> Value {
    let mut found = of_kind(name, kind);
    assert_eq!(found.len(), 1, "{kind} in {name}");
    found.remove(0)
}

/// A directory of a test; removed when dropped.
struct Place(PathBuf);

impl Place {
    fn make(test: &str) -> Place {
        let path = std::env::temp_dir().join(format!("millrace-deployment-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).expect("directory");
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// Helm.

fn python() -> String {
    std::env::var("MILLRACE_HELM_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

fn render(values: &str, templates: &[&str]) -> Output {
    let mut command = Command::new(python());
    command.arg(format!("{DEPLOY}/helm/render.py")).args([NAMESPACE, values]).args(templates);
    command.output().expect("python")
}

fn rendered(values: &str, templates: &[&str]) -> String {
    let output = render(values, templates);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

const HEADER: &str =
    "# Rendered from deploy/helm/millrace; a test compares it. deploy/README.md says how it is used.\n";

fn the_chart_gives_the_rendered_files() {
    for (name, values, templates) in RENDERED {
        let text = format!("{HEADER}{}", rendered(values, templates));
        if std::env::var_os("MILLRACE_WRITE_DOCS").is_some() {
            fs::write(Path::new(DEPLOY).join(name), &text).expect("written");
        }
        let stands = read(name);
        let differs = stands.lines().zip(text.lines()).position(|(one, other)| one != other);
        assert!(
            stands == text,
            "deploy/{name} is not what the chart gives, line {differs:?}; MILLRACE_WRITE_DOCS=1 writes it"
        );
    }
}

/// What `helm lint` prints as JSON, by the library.
const LINT: &str = "import json, sys, helm_python; print(json.dumps(helm_python.lint(sys.argv[1])))";

fn helm_finds_nothing_wrong() {
    let output =
        Command::new(python()).args(["-c", LINT]).arg(format!("{DEPLOY}/helm/millrace")).output().expect("python");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    // 1 is advice, such as to have an icon.
    let wrong = |message: &&Value| message["severity"].as_u64() != Some(1);
    let messages: Vec<&Value> = found["messages"].as_array().expect("messages").iter().filter(wrong).collect();
    assert!(messages.is_empty() && found["total_charts_linted"] == 1, "{found}");
}

fn values_are_checked_and_used() {
    for wrong in [r#"{"healthPort": "high"}"#, r#"{"capabilites": []}"#, r#"{"image": {"pullPolicy": "Sometimes"}}"#] {
        let output = render(wrong, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("schema"), "{wrong}: {said}");
    }
    let values = r#"{"apiServer": {"host": "192.0.2.10", "port": 6443}, "image": {"repository": "registry.example/millrace",
        "tag": "1"}, "cni": {"pluginDirectory": "/var/lib/rancher/data/cni"}, "seLinuxOptions": {"type": "spc_t"}}"#;
    let set = documents(&rendered(values, &["daemonset.yaml"])).remove(0);
    let typed: DaemonSet = strictly(&set);
    let spec = typed.spec.and_then(|spec| spec.template.spec).expect("spec");
    let agent = &spec.containers[0];
    let environment =
        agent.env.iter().flatten().filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)));
    assert_eq!(
        environment.collect::<Vec<_>>(),
        [("KUBERNETES_SERVICE_HOST", "192.0.2.10"), ("KUBERNETES_SERVICE_PORT", "6443")]
    );
    assert_eq!(agent.image.as_deref(), Some("registry.example/millrace:1"));
    let plugins = spec.volumes.iter().flatten().find(|volume| volume.name == "plugins").expect("volume");
    assert_eq!(plugins.host_path.as_ref().map(|path| path.path.as_str()), Some("/var/lib/rancher/data/cni"));
    // The namespace is the release's, whatever deploy/rbac.yaml is for.
    let rights = rendered("{}", &["rbac.yaml"]);
    assert!(!rights.contains("kube-system") && rights.matches(NAMESPACE).count() == 2, "{rights}");
    assert_eq!(rendered("{}", &["namespace.yaml"]).trim(), "", "namespaces are not Helm's to make unasked");
}

// Types.

/// Reads a document as its type, and refuses what the type does not have.
fn strictly<Typed: DeserializeOwned + Serialize>(document: &Value) -> Typed {
    let typed: Typed = serde_json::from_value(document.clone()).expect("of its type");
    let back = serde_json::to_value(&typed).expect("JSON");
    let mut unknown = Vec::new();
    find_unknown(document, &back, document["kind"].as_str().unwrap_or_default(), &mut unknown);
    assert!(unknown.is_empty(), "fields that Kubernetes does not have: {unknown:?}");
    typed
}

fn find_unknown(written: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (key, value) in written {
                match known.get(key) {
                    Some(known) => find_unknown(value, known, &format!("{path}.{key}"), unknown),
                    None => unknown.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(written), Value::Array(known)) if written.len() == known.len() => {
            let pairs = written.iter().zip(known).enumerate();
            pairs.for_each(|(at, (written, known))| find_unknown(written, known, &format!("{path}[{at}]"), unknown));
        }
        (Value::Number(written), Value::Number(known)) if written.as_f64() == known.as_f64() => {}
        (written, known) if written == known => {}
        _ => unknown.push(path.to_owned()),
    }
}

fn every_object_is_of_its_type() {
    let mut kinds = Vec::new();
    for (name, ..) in RENDERED {
        for document in documents(&read(name)) {
            let kind = document["kind"].as_str().expect("kind").to_owned();
            match kind.as_str() {
                "Namespace" => drop(strictly::<Namespace>(&document)),
                "CustomResourceDefinition" => drop(strictly::<CustomResourceDefinition>(&document)),
                "ServiceAccount" => drop(strictly::<ServiceAccount>(&document)),
                "ClusterRole" => drop(strictly::<ClusterRole>(&document)),
                "ClusterRoleBinding" => drop(strictly::<ClusterRoleBinding>(&document)),
                "ConfigMap" => drop(strictly::<ConfigMap>(&document)),
                "DaemonSet" => drop(strictly::<DaemonSet>(&document)),
                other => panic!("{name}: no type for {other}"),
            }
            kinds.push(kind);
        }
    }
    assert!(
        kinds.iter().any(|kind| kind == "Namespace") && kinds.iter().filter(|kind| *kind == "DaemonSet").count() == 2
    );
    let misspelt = serde_json::json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {}});
    assert!(std::panic::catch_unwind(|| strictly::<ConfigMap>(&misspelt)).is_err(), "a wrong field is found");
}

fn rights_and_definitions_have_one_source() {
    let with = |text: String| documents(&text.replace("kube-system", NAMESPACE));
    for source in ["rbac.yaml", "crds.yaml"] {
        let whole = documents(&read("millrace.yaml"));
        for document in with(read(source)) {
            assert!(whole.contains(&document), "{source}: {} differs in millrace.yaml", document["metadata"]["name"]);
        }
    }
    // What stands in one place twice, and what is for every kind, would be no least right.
    let role = the_one("millrace.yaml", "ClusterRole");
    assert!(!role.to_string().contains("\"*\""), "no wildcards");
}

// What users and semantics ask of the DaemonSet.

fn the_daemonset_is_as_nodes_need_it() {
    let set: DaemonSet = strictly(&the_one("millrace.yaml", "DaemonSet"));
    let spec = set.spec.expect("spec");
    let update = spec.update_strategy.expect("strategy").rolling_update.expect("rolling");
    assert_eq!(serde_json::to_value(update).expect("JSON"), serde_json::json!({"maxUnavailable": 1}));
    let pod = spec.template.spec.expect("pod");
    assert_eq!((pod.host_network, pod.priority_class_name.as_deref()), (Some(true), Some("system-node-critical")));
    let tolerations = pod.tolerations.expect("tolerations");
    assert!(tolerations.iter().any(|toleration| {
        toleration.operator.as_deref() == Some("Exists") && toleration.key.is_none() && toleration.effect.is_none()
    }));
    let all = pod.init_containers.iter().flatten().chain(&pod.containers);
    for container in all {
        let context = container.security_context.as_ref().expect("securityContext");
        assert_ne!(context.privileged, Some(true), "{}", container.name);
        assert_eq!((context.allow_privilege_escalation, context.read_only_root_filesystem), (Some(false), Some(true)));
        let dropped = context.capabilities.as_ref().and_then(|capabilities| capabilities.drop.clone());
        assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{}", container.name);
    }
    let init = &pod.init_containers.expect("init")[0];
    let added = init.security_context.as_ref().and_then(|context| context.capabilities.as_ref()?.add.clone());
    assert_eq!(added, None, "to copy a file needs no right");
    let agent = &pod.containers[0];
    for (probe, path) in
        [(&agent.startup_probe, "/livez"), (&agent.liveness_probe, "/livez"), (&agent.readiness_probe, "/readyz")]
    {
        let asked = probe.as_ref().and_then(|probe| probe.http_get.clone()).expect("probe");
        assert_eq!(
            (asked.path.as_deref(), serde_json::to_value(asked.port).expect("JSON")),
            (Some(path), 10_256.into())
        );
    }
    for (path, propagation) in [
        ("/etc/cni/net.d", None),
        ("/run/millrace", None),
        ("/var/lib/millrace", None),
        ("/run/netns", Some("HostToContainer")),
        ("/var/run/netns", Some("HostToContainer")),
        ("/dev/net/tun", None),
        ("/host/proc/sys/net", None),
    ] {
        let mount = agent.volume_mounts.iter().flatten().find(|mount| mount.mount_path == path).expect(path);
        assert_eq!(mount.mount_propagation.as_deref(), propagation, "{path}");
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).expect(path);
        assert!(volume.host_path.is_some(), "{path}");
    }
}

fn words_of(container: &Value) -> Vec<String> {
    let words = container["args"].as_array().expect("args").iter();
    words.map(|word| word.as_str().expect("text").to_owned()).collect()
}

fn program(words: &[String], more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace")).args(words).args(more).stdin(Stdio::null()).output().expect("program")
}

/// The command lines of all containers are the program's, and the agent's file is one.
fn the_program_understands_its_containers() {
    let place = Place::make("words");
    let set = the_one("millrace.yaml", "DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    let file = place.0.join("agent.toml");
    let configuration = the_one("millrace.yaml", "ConfigMap")["data"]["agent.toml"].as_str().expect("text").to_owned();
    fs::write(&file, configuration).expect("written");
    let replaced = |container: &Value, from: &str, to: &str| -> Vec<String> {
        words_of(container).iter().map(|word| word.replace(from, to)).collect()
    };
    let words = replaced(&pod["containers"][0], "/etc/millrace/agent.toml", &file.display().to_string());
    let checked = program(&words, &["--check"]);
    assert!(checked.status.success(), "{checked:?}");
    assert!(String::from_utf8_lossy(&checked.stdout).contains("is valid"));

    let words: Vec<String> = replaced(&pod["initContainers"][0], "/host/plugins", &place.0.display().to_string())
        .iter()
        .map(|word| word.replace("/millrace-cni", env!("CARGO_BIN_EXE_millrace")))
        .collect();
    for outcome in ["written", "unchanged"] {
        let installed = program(&words, &[]);
        assert!(String::from_utf8_lossy(&installed.stdout).starts_with(outcome), "{installed:?}");
    }
    assert!(place.0.join("millrace-cni").is_file());

    // Not run: it would take what it finds on this machine. A wrong word would be found before the question for help.
    let set = the_one("uninstall.yaml", "DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        let words = words_of(container);
        assert_eq!(words[0], "uninstall");
        let understood = program(&words, &["--help"]);
        assert!(understood.status.success(), "{understood:?}");
    }
}

// kubectl.

struct Kubectl {
    kubeconfig: PathBuf,
    _emulator: Emulator,
    _place: Place,
}

impl Kubectl {
    fn start() -> Kubectl {
        let place = Place::make("kubectl");
        let emulator = Emulator::start(Options::default()).expect("emulator");
        let kubeconfig = place.0.join("kubeconfig");
        fs::write(&kubeconfig, emulator.kubeconfig()).expect("written");
        Kubectl { kubeconfig, _emulator: emulator, _place: place }
    }

    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--cache-dir", "/dev/null"]).args(words);
        let output = command.stdin(Stdio::null()).output().expect("kubectl");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn kubectl_applies_upgrades_and_removes_it() {
    let kubectl = Kubectl::start();
    let file = |name: &str| format!("{DEPLOY}/{name}");
    let apply = |name: &str| kubectl.run(&["apply", "--validate=false", "-f", &file(name)]);
    let first = apply("millrace.yaml");
    let objects = documents(&read("millrace.yaml")).len();
    assert_eq!(first.lines().filter(|line| line.ends_with(" created")).count(), objects, "{first}");
    assert_eq!(apply("millrace.yaml").lines().filter(|line| line.ends_with(" unchanged")).count(), objects);
    let of_set = |path: &str| {
        let path = format!("jsonpath={{{path}}}");
        kubectl.run(&["get", "daemonset", "millrace", "-n", NAMESPACE, "-o", &path])
    };
    let names = ".spec.template.spec['initContainers','containers'][*].name";
    assert_eq!(of_set(names), "install agent");
    // The same DaemonSet, node by node, becomes the one that restores.
    assert!(apply("uninstall.yaml").contains("daemonset.apps/millrace configured"));
    assert_eq!(of_set(names), "uninstall uninstalled");
    assert_eq!(of_set(".spec.template.spec.volumes[?(@.name=='tun')].name"), "");
    assert!(apply("millrace.yaml").contains("daemonset.apps/millrace configured"), "and back");
    assert_eq!(of_set(names), "install agent");
    // What stands in the namespace may have gone with it.
    kubectl.run(&["delete", "--wait=false", "--ignore-not-found", "-f", &file("millrace.yaml")]);
    let left = kubectl.run(&[
        "get",
        "daemonset,configmap,serviceaccount,clusterrole,clusterrolebinding,crd",
        "-A",
        "-o",
        "name",
    ]);
    assert_eq!(left.trim(), "");
}

/// A test by its name, and what the machine lacks for it.
type Test = (&'static str, fn(), Option<&'static str>);

fn succeeds(program: &str, words: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn main() -> ExitCode {
    let helm = (!succeeds(&python(), &["-c", "import helm_python"])).then_some(
        "needs Helm as a library for Python: pip install --require-hashes -r deploy/helm/requirements.txt in an environment \
         whose python MILLRACE_HELM_PYTHON names",
    );
    let kubectl =
        (!succeeds("kubectl", &["version", "--client"])).then_some("needs the program kubectl (tried with 1.32)");
    let tests: [Test; 8] = [
        ("the_chart_gives_the_rendered_files", the_chart_gives_the_rendered_files, helm),
        ("helm_finds_nothing_wrong", helm_finds_nothing_wrong, helm),
        ("values_are_checked_and_used", values_are_checked_and_used, helm),
        ("every_object_is_of_its_type", every_object_is_of_its_type, None),
        ("rights_and_definitions_have_one_source", rights_and_definitions_have_one_source, None),
        ("the_daemonset_is_as_nodes_need_it", the_daemonset_is_as_nodes_need_it, None),
        ("the_program_understands_its_containers", the_program_understands_its_containers, None),
        ("kubectl_applies_upgrades_and_removes_it", kubectl_applies_upgrades_and_removes_it, kubectl),
    ];
    let trial = |(name, run, lacking): Test| {
        Trial::ignorable_test(name, move || {
            if let Some(reason) = lacking {
                return Ok(Completion::ignored_with(reason));
            }
            run();
            Ok(Completion::Completed)
        })
    };
    libtest_mimic::run(&Arguments::from_args(), tests.map(trial).into()).exit_code()
}
