//! What a request asks for: its path and its parameters.

use std::sync::Arc;

use hyper::Uri;

use crate::failure::Failure;
use crate::resource::Resource;
use crate::storage::Storage;

/// A path below a group and version.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) resource: Arc<Resource>,
    /// Empty: all namespaces, or a kind without.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    pub(crate) status: bool,
}

impl Target {
    /// Reads `/api/v1/namespaces/shop/pods/web-0/status` and its like.
    pub(crate) fn of(path: &str, storage: &Storage) -> Result<Target, Failure> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(Failure::no_such_resource()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest != ["status"] => (*namespace, rest),
            _ => ("", rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (*plural, "", false),
            [plural, name] => (*plural, *name, false),
            [plural, name, "status"] => (*plural, *name, true),
            _ => return Err(Failure::no_such_resource()),
        };
        let resource = storage.resource(group, version, plural).ok_or_else(Failure::no_such_resource)?;
        let fits = resource.namespaced || namespace.is_empty();
        let complete = !resource.namespaced || name.is_empty() || !namespace.is_empty();
        if !fits || !complete || (status && !resource.status) {
            return Err(Failure::no_such_resource());
        }
        Ok(Target { resource, namespace: namespace.to_owned(), name: name.to_owned(), status })
    }
}

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(crate) fn of(uri: &Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        };
        Self(pairs.map(decoded).collect())
    }

    /// A parameter that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let wrong = |text| Failure::bad_request(format!("invalid {name}: {text:?}"));
        self.get(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
    }
}

/// Percent encoding undone; a plus is a blank, as in forms.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|_| *first == b'%').and_then(|code| u8::from_str_radix(code, 16).ok());
        match (first, code) {
            (_, Some(code)) => {
                bytes.push(code);
                rest = &behind[2..];
                continue;
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(*other),
        }
        rest = behind;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
