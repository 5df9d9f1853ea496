//! The variables a runtime passes, checked as the specification asks ("Parameters" section).
//!
//! Only the variables a verb needs are looked at: podman asks VERSION with `dummy` in all of them, and containerd
//! sends its second DEL with an empty CNI_NETNS.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::spec::{Failure, code};

/// Longest interface name, without the final NUL (`IFNAMSIZ` in include/uapi/linux/if.h).
const INTERFACE_NAME_BYTES: usize = 15;

/// The `CNI_` variables of a process, unchecked.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
}

/// What a verb does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it, as often as asked.
    Delete,
    /// Say whether it is attached as it should be.
    Check,
    /// Detach all that the runtime does not know.
    Collect,
    /// Say whether ADD can be served.
    Status,
    /// Print the versions spoken.
    Version,
}

/// The checked variables of ADD, DEL and CHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS; always there for ADD.
    pub network_namespace: Option<String>,
    /// CNI_ARGS, by key.
    pub arguments: BTreeMap<String, String>,
}

impl Environment {
    /// Keeps the variables that belong to CNI.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
        let named = variables.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Environment { variables: named.filter(|(name, _)| name.starts_with("CNI_")).collect() }
    }

    /// CNI_COMMAND.
    ///
    /// # Errors
    /// Code 4 for a verb that the specification does not have.
    pub fn verb(&self) -> Result<Verb, Failure> {
        match self.required("CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Verb::Add),
            "DEL" => Ok(Verb::Delete),
            "CHECK" => Ok(Verb::Check),
            "GC" => Ok(Verb::Collect),
            "STATUS" => Ok(Verb::Status),
            "VERSION" => Ok(Verb::Version),
            other => {
                let served = "ADD, DEL, CHECK, GC, STATUS and VERSION are";
                Err(invalid("CNI_COMMAND", &format!("{other:?} is not served; {served}")))
            }
        }
    }

    /// The variables of ADD and CHECK, all required except CNI_ARGS.
    ///
    /// # Errors
    /// Code 4, naming the variable.
    pub fn for_add(&self) -> Result<Attachment, Failure> {
        let network_namespace = self.required("CNI_NETNS")?;
        if !network_namespace.starts_with('/') || network_namespace.contains('\0') {
            return Err(invalid("CNI_NETNS", &format!("{network_namespace:?} is not an absolute path")));
        }
        let arguments = parse_arguments(&self.optional("CNI_ARGS")?.unwrap_or_default())?;
        let (container_id, interface) = (self.container_id()?, self.interface()?);
        Ok(Attachment { container_id, interface, network_namespace: Some(network_namespace), arguments })
    }

    /// The variables of DEL. Only what names the attachment is required: the namespace may be gone, and the
    /// arguments are known to the agent since ADD.
    ///
    /// # Errors
    /// Code 4, naming the variable.
    pub fn for_delete(&self) -> Result<Attachment, Failure> {
        let text = |name| self.variables.get(name).and_then(|value| value.to_str());
        let network_namespace = text("CNI_NETNS").filter(|path| path.starts_with('/')).map(str::to_owned);
        let arguments = parse_arguments(text("CNI_ARGS").unwrap_or_default()).unwrap_or_default();
        let (container_id, interface) = (self.container_id()?, self.interface()?);
        Ok(Attachment { container_id, interface, network_namespace, arguments })
    }

    fn optional(&self, name: &str) -> Result<Option<String>, Failure> {
        match self.variables.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Some("") => Ok(None),
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(invalid(name, "it is not UTF-8")),
            },
        }
    }

    fn required(&self, name: &str) -> Result<String, Failure> {
        self.optional(name)?.ok_or_else(|| invalid(name, "it is missing or empty"))
    }

    fn container_id(&self) -> Result<String, Failure> {
        let id = self.required("CNI_CONTAINERID")?;
        check_container_id(&id).map_err(|reason| invalid("CNI_CONTAINERID", reason))?;
        Ok(id)
    }

    fn interface(&self) -> Result<String, Failure> {
        let name = self.required("CNI_IFNAME")?;
        check_interface_name(&name).map_err(|reason| invalid("CNI_IFNAME", reason))?;
        Ok(name)
    }
}

/// Whether `id` may name a container.
///
/// # Errors
/// The reason, as the end of a sentence.
pub fn check_container_id(id: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if !id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
        return Err("it must begin with a letter or digit");
    }
    if !id.bytes().all(allowed) {
        return Err("it may hold letters, digits, '_', '.' and '-' only");
    }
    Ok(())
}

/// Whether `name` may name an interface.
///
/// # Errors
/// The reason, as the end of a sentence.
pub fn check_interface_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > INTERFACE_NAME_BYTES {
        return Err("it must have 1 to 15 bytes");
    }
    if matches!(name, "." | "..") || name.contains(['/', ':', '\0']) || name.contains(char::is_whitespace) {
        return Err("it may not be '.' or '..' nor hold '/', ':' or white space");
    }
    Ok(())
}

/// CNI_ARGS: `KEY=value;KEY=value`. Keys nobody here knows are kept; the agent looks for its own.
fn parse_arguments(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(invalid("CNI_ARGS", &format!("{pair:?} is not KEY=value"))),
        })
        .collect()
}

fn invalid(name: &str, reason: &str) -> Failure {
    Failure::new(code::INVALID_ENVIRONMENT, format!("environment variable {name} is invalid: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn each_wrong_variable_is_named() {
        let right =
            [("CNI_CONTAINERID", "abc"), ("CNI_NETNS", "/run/netns/x"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "")];
        assert!(environment(&right).for_add().is_ok());
        let wrong = [
            ("CNI_CONTAINERID", vec!["", "-a", "a/b", "a b", "ä"]),
            ("CNI_NETNS", vec!["", "dummy", "run/netns/x"]),
            ("CNI_IFNAME", vec!["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"]),
            ("CNI_ARGS", vec!["x", "=1", "A=1;b"]),
        ];
        for (name, values) in wrong {
            for value in values {
                let mut variables = right.to_vec();
                variables.retain(|(key, _)| *key != name);
                variables.push((name, value));
                let failure = environment(&variables).for_add().expect_err(value);
                assert_eq!(failure.code, code::INVALID_ENVIRONMENT);
                assert!(failure.message.contains(name), "{failure}");
            }
        }
    }

    #[test]
    fn delete_forgives_what_it_does_not_need() {
        let variables = [("CNI_CONTAINERID", "abc"), ("CNI_NETNS", ""), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "junk")];
        let attachment = environment(&variables).for_delete().expect("enough to delete");
        assert_eq!((attachment.network_namespace, attachment.arguments.len()), (None, 0));
    }
}
