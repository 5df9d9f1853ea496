//! Typed objects out of documents, with errors that name the field and its line.
//!
//! A serde deserializer over [`Located`]: whatever a type refuses (a wrong type, an unknown field, a missing one),
//! the error carries the path and the line of the innermost value concerned.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor, value::StrDeserializer,
};
use serde::forward_to_deserialize_any;

use super::document::{Document, Located};

/// What is wrong with which field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, e.g. `spec.podCIDRs[0]`; empty for the object itself.
    pub path: String,
    /// Its line, if the object comes from a file.
    pub line: Option<u32>,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(formatter, "{}: ", self.path)?;
        }
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: String::new(), line: None, message: message.to_string() }
    }
}

impl FieldError {
    /// An error about the field at `path` of `object`.
    #[must_use]
    pub fn at(object: &Located, path: &[&str], message: impl Into<String>) -> Self {
        Self { path: path.join("."), line: object.line_of(path), message: message.into() }
    }

    fn inside_field(mut self, name: &str, value: &Located) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{name}{separator}{}", self.path);
        self.found_in(value)
    }

    fn inside_list(mut self, index: usize, value: &Located) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("[{index}]{separator}{}", self.path);
        self.found_in(value)
    }

    fn found_in(mut self, value: &Located) -> Self {
        self.line = self.line.or((value.line != 0).then_some(value.line));
        self
    }
}

impl Located {
    /// This value as a `T`.
    pub fn read<'de, T: de::Deserialize<'de>>(&'de self) -> Result<T, FieldError> {
        T::deserialize(self).map_err(|error| error.found_in(self))
    }
}

impl<'de> Deserializer<'de> for &'de Located {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Document::Null => visitor.visit_unit(),
            Document::Bool(value) => visitor.visit_bool(*value),
            Document::Integer(value) => visitor.visit_i64(*value),
            Document::Unsigned(value) => visitor.visit_u64(*value),
            Document::Float(value) => visitor.visit_f64(*value),
            Document::Text(value) => visitor.visit_borrowed_str(value),
            Document::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Document::Fields(fields) => visitor.visit_map(Entries { fields: fields.iter(), current: None }),
        }
    }

    /// Takes the words that YAML 1.1 has for true and false, where a type asks for one of these.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.text().map(str::to_ascii_lowercase).as_deref() {
            Some("yes" | "on" | "y" | "true") => visitor.visit_bool(true),
            Some("no" | "off" | "n" | "false") => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.value == Document::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match self.text() {
            Some(text) => visitor.visit_enum(UnitVariant(text)),
            None => Err(FieldError::custom("expected a word")),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Located>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|error| error.inside_list(index, item))
    }
}

struct Entries<'de> {
    fields: std::slice::Iter<'de, (String, Located)>,
    current: Option<&'de (String, Located)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        self.current = self.fields.next();
        let Some((name, value)) = self.current else { return Ok(None) };
        let key: StrDeserializer<'_, FieldError> = name.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.inside_field(name, value))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let Some((name, value)) = self.current else { return Err(FieldError::custom("a value without a key")) };
        seed.deserialize(value).map_err(|error| error.inside_field(name, value))
    }
}

struct UnitVariant<'de>(&'de str);

impl<'de> EnumAccess<'de> for UnitVariant<'de> {
    type Error = FieldError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), FieldError> {
        let name: StrDeserializer<'_, FieldError> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for UnitVariant<'de> {
    type Error = FieldError;

    fn unit_variant(self) -> Result<(), FieldError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, FieldError> {
        Err(FieldError::custom("expected a word without a value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, FieldError> {
        Err(FieldError::custom("expected a word without a value"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, FieldError> {
        Err(FieldError::custom("expected a word without a value"))
    }
}
