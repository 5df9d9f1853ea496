//! A document: a tree of plain values, each with the line it was written in.
//!
//! Objects are kept in this form between the store and `observe/`, so that a fault found late (an address outside its
//! pool) can still name its line. Values without a source (from a server, or made by the program) have line 0.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::stable_hash::ContentHash;

/// A value and its line.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// Line in the file, counted from 1; 0 if there is none.
    pub line: u32,
    /// The value.
    pub value: Document,
}

/// A plain value.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A whole number beyond the signed ones.
    Unsigned(u64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Located>),
    /// Fields in the order written.
    Fields(Vec<(String, Located)>),
}

impl Located {
    /// The field of this name, if this is a map that has it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Located> {
        match &self.value {
            Document::Fields(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value at the end of a path of field names.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<&Located> {
        path.iter().try_fold(self, |value, name| value.field(name))
    }

    /// The text, if this is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Document::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of the value at `path`, or of the nearest value above that exists; `None` without a source.
    #[must_use]
    pub fn line_of(&self, path: &[&str]) -> Option<u32> {
        let mut value = self;
        for name in path {
            match value.field(name) {
                Some(inner) => value = inner,
                None => break,
            }
        }
        (value.line != 0).then_some(value.line)
    }

    /// Adds `lines` to every line: the document begins that far down in its file.
    pub(crate) fn shift(&mut self, lines: u32) {
        self.line += if self.line == 0 { 0 } else { lines };
        match &mut self.value {
            Document::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Document::Fields(fields) => fields.iter_mut().for_each(|(_, value)| value.shift(lines)),
            _ => {}
        }
    }

    /// Takes the content into `hash`: independent of the order of fields, of lines and of spelling.
    pub(crate) fn hash_into(&self, hash: &mut ContentHash) {
        match &self.value {
            Document::Null => hash.update(b"n"),
            Document::Bool(value) => hash.update(if *value { b"t" } else { b"f" }),
            Document::Integer(value) => hash_scalar(hash, b"i", value.to_string().as_bytes()),
            Document::Unsigned(value) => hash_scalar(hash, b"i", value.to_string().as_bytes()),
            Document::Float(value) => hash_scalar(hash, b"d", &value.to_bits().to_be_bytes()),
            Document::Text(value) => hash_scalar(hash, b"s", value.as_bytes()),
            Document::List(items) => {
                hash_scalar(hash, b"l", &(items.len() as u64).to_be_bytes());
                items.iter().for_each(|item| item.hash_into(hash));
            }
            Document::Fields(fields) => {
                hash_scalar(hash, b"m", &(fields.len() as u64).to_be_bytes());
                let mut sorted: Vec<_> = fields.iter().collect();
                sorted.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
                for (name, value) in sorted {
                    hash_scalar(hash, b"k", name.as_bytes());
                    value.hash_into(hash);
                }
            }
        }
    }
}

/// Kind, length and bytes, so that no two different trees give the same stream of bytes.
fn hash_scalar(hash: &mut ContentHash, kind: &[u8], bytes: &[u8]) {
    hash.update(kind);
    hash.update(&(bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

impl From<&serde_json::Value> for Located {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        let value = match value {
            Value::Null => Document::Null,
            Value::Bool(value) => Document::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Document::Integer(value),
                (None, Some(value)) => Document::Unsigned(value),
                (None, None) => number.as_f64().map_or(Document::Null, Document::Float),
            },
            Value::String(text) => Document::Text(text.clone()),
            Value::Array(items) => Document::List(items.iter().map(Located::from).collect()),
            Value::Object(fields) => {
                Document::Fields(fields.iter().map(|(name, value)| (name.clone(), Located::from(value))).collect())
            }
        };
        Located { line: 0, value }
    }
}

impl From<&Located> for serde_json::Value {
    fn from(located: &Located) -> Self {
        match &located.value {
            Document::Null => Self::Null,
            Document::Bool(value) => Self::Bool(*value),
            Document::Integer(value) => Self::from(*value),
            Document::Unsigned(value) => Self::from(*value),
            Document::Float(value) => Self::from(*value),
            Document::Text(text) => Self::String(text.clone()),
            Document::List(items) => Self::Array(items.iter().map(Self::from).collect()),
            Document::Fields(fields) => {
                Self::Object(fields.iter().map(|(name, value)| (name.clone(), Self::from(value))).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Document>::deserialize(deserializer)?;
        Ok(Located { line: u32::try_from(spanned.referenced.line()).unwrap_or(0), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Document, E> {
        Ok(Document::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Document, E> {
        Ok(Document::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Document, E> {
        Ok(i64::try_from(value).map_or(Document::Unsigned(value), Document::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Document, E> {
        Ok(Document::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Document, E> {
        Ok(Document::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document::Null)
    }

    fn visit_none<E>(self) -> Result<Document, E> {
        Ok(Document::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Document, D::Error> {
        Document::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Document, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Document::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
        let mut fields = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            fields.push(entry);
        }
        Ok(Document::Fields(fields))
    }
}
