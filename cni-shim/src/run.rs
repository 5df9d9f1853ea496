//! The verbs: environment and standard input in, one JSON document out.

use std::io::{Read, Write};
use std::net::IpAddr;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::agent_client::{AgentClient, ClientError};
use crate::configuration::{self, Configuration, Versioned};
use crate::environment::{Attachment, Environment, Verb};
use crate::pending;
use crate::protocol::{
    ADD_PATH, AddAnswer, AddRequest, AnswerRoute, CHECK_PATH, COLLECT_PATH, CheckRequest, CheckedInterface,
    CollectRequest, DELETE_PATH, DeleteRequest, STATUS_PATH, StatusRequest,
};
use crate::spec::{Address, Failure, Interface, NetworkResult, Route, Version, code, version_result};

/// Longest network configuration read.
const CONFIGURATION_BYTES: u64 = 1 << 20;

/// Longest answer of the agent read.
const ANSWER_BYTES: u64 = 1 << 20;

/// Runs one verb. Prints its result, or its error, on `stdout` and what an operator should know on `log`.
/// Returns the exit code: 0, or 1 after an error.
pub fn run(environment: &Environment, stdin: &mut dyn Read, stdout: &mut dyn Write, log: &mut dyn Write) -> u8 {
    let (document, exit_code) = match dispatch(environment, stdin, log) {
        Ok(document) => (document, 0),
        Err((version, failure)) => {
            // Without standard error there is nobody to tell; the error is on standard output anyway.
            let _ = writeln!(log, "millrace-cni: {failure}");
            (Some(failure.to_json(version)), 1)
        }
    };
    let printed = document.map_or(Ok(()), |document| writeln!(stdout, "{document}"));
    if printed.is_err() { 1 } else { exit_code }
}

fn dispatch(environment: &Environment, stdin: &mut dyn Read, log: &mut dyn Write) -> Versioned<Option<Value>> {
    let newest = |failure| (Version::NEWEST, failure);
    let verb = environment.verb().map_err(newest)?;
    let input = read_input(stdin).map_err(newest)?;
    match verb {
        Verb::Version => Ok(Some(version_result(configuration::version_of(&input)))),
        Verb::Add => add(environment, &input).map(Some),
        Verb::Delete => delete(environment, &input, log).map(|()| None),
        Verb::Check => check(environment, &input).map(|()| None),
        Verb::Collect => collect(&input).map(|()| None),
        Verb::Status => status(&input).map(|()| None),
    }
}

fn read_input(stdin: &mut dyn Read) -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    stdin
        .take(CONFIGURATION_BYTES + 1)
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(code::IO, "standard input cannot be read").with_details(error.to_string()))?;
    if input.len() as u64 > CONFIGURATION_BYTES {
        return Err(Failure::new(code::DECODE, "the network configuration is longer than 1 MiB"));
    }
    Ok(input)
}

fn add(environment: &Environment, input: &[u8]) -> Versioned<Value> {
    let version = configuration::version_of(input);
    let attachment = environment.for_add().map_err(|failure| (version, failure))?;
    let configuration = configuration::for_add(input)?;
    check_chain(&attachment, &configuration).map_err(|failure| (configuration.version, failure))?;
    let asked = |key: &str| attachment.arguments.get(key).filter(|value| !value.is_empty());
    let addresses = match asked("IP") {
        Some(text) if configuration.addresses.is_empty() => {
            argument_addresses(text).map_err(|error| (version, error))?
        }
        _ => configuration.addresses.clone(),
    };
    let request = AddRequest {
        addresses,
        mac: configuration.mac.clone().or_else(|| asked("MAC").cloned()),
        port_mappings: configuration.port_mappings.clone(),
        bandwidth: configuration.bandwidth,
        network: configuration.network.clone(),
        container_id: attachment.container_id,
        interface: attachment.interface,
        network_namespace: attachment.network_namespace.unwrap_or_default(),
        arguments: attachment.arguments,
    };
    let answer: AddAnswer = exchange(&configuration, ADD_PATH, &request)
        .map_err(|error| (configuration.version, error.into_failure(&configuration)))?;
    let made = NetworkResult { dns: configuration.dns, ..answer.into_result(&request) };
    let result = made.amend(configuration.previous_result.unwrap_or_default());
    result.to_json(version).map_err(|failure| (version, failure))
}

fn delete(environment: &Environment, input: &[u8], log: &mut dyn Write) -> Versioned<()> {
    let version = configuration::version_of(input);
    let attachment = environment.for_delete().map_err(|failure| (version, failure))?;
    let configuration = configuration::for_delete(input)?;
    let request = DeleteRequest {
        network: configuration.network.clone(),
        container_id: attachment.container_id,
        interface: attachment.interface,
        network_namespace: attachment.network_namespace,
    };
    match exchange::<_, IgnoredAny>(&configuration, DELETE_PATH, &request) {
        Ok(_) => Ok(()),
        // A pod must be removable while the agent is down, or dies while it works: the agent takes the request up when
        // it is there again.
        Err(ExchangeError::Client(error @ (ClientError::Absent(..) | ClientError::Connection(_)))) => {
            let _ = writeln!(log, "millrace-cni: {error}; the agent cleans up when it starts");
            let Err(reason) = pending::leave(&configuration.state_directory, &request) else { return Ok(()) };
            let message = "no agent answers, and the request could not be left for it";
            let _ = writeln!(log, "millrace-cni: {message}: {reason}");
            if !pending::may_be_left_later(&reason) {
                return Ok(());
            }
            let failure = Failure::new(code::TRY_AGAIN_LATER, message);
            Err((configuration.version, failure.with_details(reason.to_string())))
        }
        Err(error) => Err((configuration.version, error.into_failure(&configuration))),
    }
}

/// An earlier plugin of the chain may have made any interface but ours.
fn check_chain(attachment: &Attachment, configuration: &Configuration) -> Result<(), Failure> {
    let previous = configuration.previous_result.iter().flat_map(|previous| &previous.interfaces);
    let mut inside = previous.filter(|interface| interface.sandbox.is_some());
    if inside
        .all(|interface| interface.name != attachment.interface || interface.sandbox != attachment.network_namespace)
    {
        return Ok(());
    }
    let message = format!(
        "CNI_IFNAME {:?} exists: prevResult has it from an earlier plugin of the chain, and millrace-cni makes the interface",
        attachment.interface
    );
    Err(Failure::new(code::INVALID_ENVIRONMENT, message))
}

/// CNI_ARGS IP: addresses, separated by commas.
fn argument_addresses(text: &str) -> Result<Vec<IpAddr>, Failure> {
    let address = |part: &str| {
        configuration::parse_address(part).ok_or_else(|| {
            let message = format!("environment variable CNI_ARGS is invalid: IP {part:?} is not an address");
            Failure::new(code::INVALID_ENVIRONMENT, message)
        })
    };
    text.split(',').map(address).collect()
}

fn check(environment: &Environment, input: &[u8]) -> Versioned<()> {
    let version = configuration::version_of(input);
    let attachment = environment.for_add().map_err(|failure| (version, failure))?;
    let configuration = configuration::for_check(input)?;
    let previous = configuration.previous_result.clone().unwrap_or_default();
    let namespace = attachment.network_namespace.unwrap_or_default();
    let ours = |interface: &Interface| {
        interface.name == attachment.interface && interface.sandbox.as_ref().is_none_or(|sandbox| *sandbox == namespace)
    };
    // Later plugins may have added interfaces and addresses: those of others are not ours to judge.
    let Some(index) = previous.interfaces.iter().position(ours) else {
        let message = format!("prevResult has no interface {} in {namespace}", attachment.interface);
        return Err((version, Failure::new(code::INVALID_CONFIGURATION, message)));
    };
    // A plugin that names no interface may mean ours.
    let of_ours = |address: &&Address| address.interface.is_none_or(|other| other == index as u64);
    let addresses = previous.ips.iter().filter(of_ours).filter_map(|ip| configuration::parse_address(&ip.address));
    let request = CheckRequest {
        network: configuration.network.clone(),
        container_id: attachment.container_id,
        interface: attachment.interface.clone(),
        network_namespace: namespace.clone(),
        mac: previous.interfaces[index].mac.clone(),
        addresses: addresses.collect(),
        mtu_bytes: previous.interfaces[index].mtu,
        further: Some(further_interfaces(&previous, index, &namespace)),
        routes: Some(previous.routes.iter().map(answer_route).collect()),
    };
    ask(&configuration, CHECK_PATH, &request)
}

/// Interfaces of a result in the pod's namespace, but for the one of this number.
fn further_interfaces(result: &NetworkResult, own: usize, namespace: &str) -> Vec<CheckedInterface> {
    let is_further =
        |(index, interface): &(usize, &Interface)| *index != own && interface.sandbox.as_deref() == Some(namespace);
    let addresses = |index: usize| {
        let of_it = result.ips.iter().filter(move |ip| ip.interface == Some(index as u64));
        of_it.filter_map(|ip| configuration::parse_address(&ip.address)).collect()
    };
    let interfaces = result.interfaces.iter().enumerate().filter(is_further);
    interfaces
        .map(|(index, interface)| CheckedInterface {
            name: interface.name.clone(),
            mac: interface.mac.clone(),
            addresses: addresses(index),
        })
        .collect()
}

fn answer_route(route: &Route) -> AnswerRoute {
    AnswerRoute { destination: route.destination.clone(), gateway: route.gateway.clone() }
}

fn collect(input: &[u8]) -> Versioned<()> {
    let configuration = configuration::for_network(input, "GC")?;
    let request =
        CollectRequest { network: configuration.network.clone(), valid: configuration.valid_attachments.clone() };
    ask(&configuration, COLLECT_PATH, &request)
}

fn status(input: &[u8]) -> Versioned<()> {
    let configuration = configuration::for_network(input, "STATUS")?;
    let request = StatusRequest { network: configuration.network.clone() };
    let asked: Result<IgnoredAny, _> = exchange(&configuration, STATUS_PATH, &request);
    asked.map(drop).map_err(|error| match error {
        // The agent is what forwards: without it no pod is connected.
        ExchangeError::Client(error) => {
            let message = format!("the Millrace agent at {} does not answer", configuration.socket.display());
            let failure = Failure::new(code::NOT_AVAILABLE_AND_LIMITED, message);
            (configuration.version, failure.with_details(error.to_string()))
        }
        error => (configuration.version, error.into_failure(&configuration)),
    })
}

/// Asks for what has no answer but success.
fn ask<Request: Serialize>(configuration: &Configuration, path: &str, request: &Request) -> Versioned<()> {
    let asked: Result<IgnoredAny, _> = exchange(configuration, path, request);
    asked.map(drop).map_err(|error| (configuration.version, error.into_failure(configuration)))
}

/// Why the agent's work is not known to be done.
enum ExchangeError {
    /// No answer.
    Client(ClientError),
    /// An answer that makes no sense.
    Garbage(String),
    /// The agent refused or failed.
    Failure(Failure),
}

impl ExchangeError {
    fn into_failure(self, configuration: &Configuration) -> Failure {
        let socket = configuration.socket.display();
        match self {
            ExchangeError::Failure(failure) => failure,
            ExchangeError::Garbage(details) => {
                let message = format!("the agent at {socket} gave an answer that cannot be decoded");
                Failure::new(code::DECODE, message).with_details(details)
            }
            ExchangeError::Client(error @ (ClientError::Absent(..) | ClientError::Timeout(_))) => {
                let message = format!("the Millrace agent at {socket} is not ready");
                Failure::new(code::TRY_AGAIN_LATER, message).with_details(error.to_string())
            }
            ExchangeError::Client(error @ ClientError::Connection(_)) => {
                let message = format!("talking to the Millrace agent at {socket} failed");
                Failure::new(code::IO, message).with_details(error.to_string())
            }
            ExchangeError::Client(error @ ClientError::Malformed(_)) => {
                let message = format!("what answers at {socket} is not a Millrace agent");
                Failure::new(code::DECODE, message).with_details(error.to_string())
            }
        }
    }
}

fn exchange<Request, Answer>(
    configuration: &Configuration,
    path: &str,
    request: &Request,
) -> Result<Answer, ExchangeError>
where
    Request: Serialize,
    Answer: DeserializeOwned,
{
    let client =
        AgentClient { socket: configuration.socket.clone(), timeout: configuration.timeout, body_bytes: ANSWER_BYTES };
    let body = serde_json::to_vec(request).map_err(|error| ExchangeError::Garbage(error.to_string()))?;
    let answer = client.post(path, &body).map_err(ExchangeError::Client)?;
    let garbage = |error: serde_json::Error| ExchangeError::Garbage(format!("status {}: {error}", answer.status));
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(garbage);
    }
    Err(serde_json::from_slice(&answer.body).map_or_else(garbage, ExchangeError::Failure))
}
