//! The schema of a type, read off its own deserialisation.
//!
//! A deserializer that has no input: it is asked for a struct of certain fields, an option, a number of so many bits, and
//! writes down what it was asked for. What may be left out is found by leaving it out. So a definition cannot say
//! anything but what the program reads.

use std::cell::RefCell;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value, json};

/// What a text is when a type wants one; it must also pass where an address is wanted.
const TEXT: &str = "192.0.2.1";

/// The structural schema (OpenAPI v3, as definitions want it) of `T`.
pub(super) fn of<T: for<'de> Deserialize<'de>>() -> Value {
    let mut schema = trace::<T>(&[]).unwrap_or_default();
    require::<T>(&mut schema, &mut Vec::new());
    schema
}

/// The schema without required fields; `None` if `T` cannot do without the field at the path `omitted`.
fn trace<T: for<'de> Deserialize<'de>>(omitted: &[String]) -> Option<Value> {
    let schema = RefCell::new(Value::Null);
    T::deserialize(Tracer { schema: &schema, omitted }).ok()?;
    Some(schema.into_inner())
}

/// Adds to each object of the schema which of its fields are required.
fn require<T: for<'de> Deserialize<'de>>(schema: &mut Value, path: &mut Vec<String>) {
    if let Some(items) = schema.get_mut("items") {
        return require::<T>(items, path);
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    let mut required = Vec::new();
    for (name, property) in properties {
        path.push(name.clone());
        if trace::<T>(path).is_none() {
            required.push(name.clone());
        }
        require::<T>(property, path);
        path.pop();
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
}

#[derive(Clone, Copy)]
struct Tracer<'a> {
    schema: &'a RefCell<Value>,
    /// A path of fields whose last one is left out; empty leaves nothing out.
    omitted: &'a [String],
}

impl Tracer<'_> {
    fn is(self, schema: Value) {
        *self.schema.borrow_mut() = schema;
    }

    fn whole(self, most: u64) {
        let format = if most > u64::from(u16::MAX) { "int64" } else { "int32" };
        self.is(json!({"type": "integer", "format": format, "minimum": 0, "maximum": most}));
    }
}

type Refused = de::value::Error;

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Refused> {
        Err(de::Error::custom("a type that reads anything has no schema"))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.is(json!({"type": "boolean"}));
        visitor.visit_bool(false)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.whole(u8::MAX.into());
        visitor.visit_u8(0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.whole(u16::MAX.into());
        visitor.visit_u16(0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.whole(u32::MAX.into());
        visitor.visit_u32(0)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.is(json!({"type": "string"}));
        visitor.visit_str(TEXT)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let items = RefCell::new(Value::Null);
        let value = visitor.visit_seq(OneItem(Some(Tracer { schema: &items, omitted: self.omitted })));
        self.is(json!({"type": "array", "items": items.into_inner()}));
        value
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.is(json!({"type": "string", "enum": variants}));
        visitor.visit_enum(variants.first().copied().unwrap_or_default().into_deserializer())
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let properties = RefCell::new(Map::new());
        let value = visitor.visit_map(EachField { fields, tracer: self, properties: &properties });
        self.is(json!({"type": "object", "properties": properties.into_inner()}));
        value
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

struct OneItem<'a>(Option<Tracer<'a>>);

impl<'de> SeqAccess<'de> for OneItem<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        self.0.take().map(|tracer| seed.deserialize(tracer)).transpose()
    }
}

struct EachField<'a> {
    fields: &'static [&'static str],
    tracer: Tracer<'a>,
    properties: &'a RefCell<Map<String, Value>>,
}

impl<'de> MapAccess<'de> for EachField<'_> {
    type Error = Refused;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        if let ([only], Some(next)) = (self.tracer.omitted, self.fields.first())
            && only == next
        {
            self.fields = &self.fields[1..];
        }
        self.fields.first().map(|name| seed.deserialize((*name).into_deserializer())).transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refused> {
        let Some((name, rest)) = self.fields.split_first() else { return Err(de::Error::custom("no field")) };
        self.fields = rest;
        let omitted = match self.tracer.omitted {
            [first, below @ ..] if first == name => below,
            _ => &[],
        };
        let schema = RefCell::new(Value::Null);
        let value = seed.deserialize(Tracer { schema: &schema, omitted });
        self.properties.borrow_mut().insert((*name).to_owned(), schema.into_inner());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Outer {
        must_be: String,
        may_be: Option<u16>,
        #[serde(default)]
        listed: Vec<Inner>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Inner {
        word: Word,
        #[serde(default)]
        on: bool,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        First,
        SecondOne,
    }

    #[test]
    fn a_schema_says_what_the_type_reads() {
        let inner = json!({
            "type": "object", "required": ["word"],
            "properties": {"word": {"type": "string", "enum": ["first", "second_one"]}, "on": {"type": "boolean"}},
        });
        let number = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 65535});
        let expected = json!({
            "type": "object", "required": ["mustBe"],
            "properties": {"mustBe": {"type": "string"}, "mayBe": number, "listed": {"type": "array", "items": inner}},
        });
        assert_eq!(of::<Outer>(), expected);
    }
}
