//! What is wrong with the configuration, in words for whoever wrote it.
//!
//! A problem never stops the rest: valid objects apply beside it, and `millrace show status` lists all problems with
//! file, line, object and field. Problems are values: each step of the path returns those of the present state.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::store::ObjectKey;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, relative to the directory of the store; absent where objects come from a server.
    #[serde(serialize_with = "as_text")]
    pub file: Option<Arc<str>>,
    /// The line in that file, counted from 1.
    pub line: Option<u32>,
    /// The object.
    #[serde(serialize_with = "as_text")]
    pub object: Option<ObjectKey>,
    /// The field, e.g. `spec.podCIDRs[0]`.
    pub field: Option<String>,
    /// What is wrong with it.
    pub message: String,
    /// What kind of problem it is, for programs, where there is a name for it: `address_contested`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

impl Problem {
    /// A problem of the configuration as a whole.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { file: None, line: None, object: None, field: None, message: message.into(), kind: None }
    }

    /// The same, with the file and line it lies in.
    #[must_use]
    pub fn in_file(mut self, file: &Arc<str>, line: Option<u32>) -> Self {
        self.file = Some(Arc::clone(file));
        self.line = line;
        self
    }

    /// The same, of a kind that has a name: words in lower case, joined by underscores.
    #[must_use]
    pub fn kind(mut self, kind: &'static str) -> Self {
        self.kind = Some(kind);
        self
    }

    /// The same, about an object.
    #[must_use]
    pub fn of(mut self, object: &ObjectKey) -> Self {
        self.object = Some(object.clone());
        self
    }

    /// The same, about a field of the object; an empty path names none.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(formatter, "{file}:")?;
            if let Some(line) = self.line {
                write!(formatter, "{line}:")?;
            }
            write!(formatter, " ")?;
        }
        if let Some(object) = &self.object {
            write!(formatter, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(formatter, "{field}: ")?;
        }
        formatter.write_str(&self.message)
    }
}
