//! JSON text into a document, with lines: the quick way for files that programs wrote.
//!
//! JSON is YAML too, but a YAML reader takes some twenty times as long, and what a program writes is what comes by the
//! megabyte. A library reads the text; each value is taken as the slice of text it stands in, which gives its line, and
//! then read in turn. So a text is passed over once for each level of it, [`DEPTH`] times at most.
//!
//! Whatever is not read here (a fault, a field given twice, too deep or too large a tree) is for the YAML reader to
//! judge, so that a fault is said in one way. A tree may be larger than one of YAML, since no alias can multiply it: 10,000
//! Services with a slice each have about a million values, and a file of 8 MiB cannot hold many more that mean something.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::document::{Document, Located};

/// Deepest tree, as the YAML reader allows.
const DEPTH: usize = 64;
/// Most values of a document; each takes about 64 B, so 64 MiB.
const VALUES: usize = 1 << 20;
/// Maps of at most so many fields are searched for a field given twice without a set.
const FEW_FIELDS: usize = 16;

/// Reads the document `text`, with or without the marker before it, which begins at `first_line` of its file; `None` if
/// it is not one plain JSON map.
pub(super) fn read(text: &str, first_line: u32) -> Option<Located> {
    let map = text.strip_prefix("---").unwrap_or(text).trim_start();
    if !map.starts_with('{') {
        return None;
    }
    let whole: &RawValue = serde_json::from_str(map).ok()?;
    Reader { text, offset: 0, line: first_line, values: 0 }.located(whole, DEPTH)
}

/// How far a text was read.
struct Reader<'a> {
    text: &'a str,
    offset: usize,
    line: u32,
    /// Values read so far.
    values: usize,
}

impl<'a> Reader<'a> {
    fn located(&mut self, raw: &'a RawValue, depth: usize) -> Option<Located> {
        let line = self.line_of(raw)?;
        let depth = depth.checked_sub(1)?;
        self.values += 1;
        if self.values > VALUES {
            return None;
        }
        let value = match raw.get().as_bytes().first()? {
            b'{' => {
                let Fields(fields) = Fields::read(raw)?;
                let fields =
                    fields.into_iter().map(|(name, value)| Some((name.into_owned(), self.located(value, depth)?)));
                Document::Fields(fields.collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
                Document::List(items.into_iter().map(|item| self.located(item, depth)).collect::<Option<_>>()?)
            }
            b'"' => Document::Text(serde_json::from_str(raw.get()).ok()?),
            _ => Located::from(&serde_json::from_str::<serde_json::Value>(raw.get()).ok()?).value,
        };
        Some(Located { line, value })
    }

    /// The line of a value, which stands behind all that were asked for before.
    fn line_of(&mut self, raw: &RawValue) -> Option<u32> {
        let offset = (raw.get().as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        let passed = self.text.as_bytes().get(self.offset..offset)?;
        self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u32;
        self.offset = offset;
        Some(self.line)
    }
}

/// The fields of a map, in order.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    fn read(raw: &'a RawValue) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(raw.get());
        deserializer.deserialize_map(FieldsVisitor).ok()
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Fields<'de>, A::Error> {
        let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some((Name(name), value)) = entries.next_entry()? {
            fields.push((name, value));
        }
        if has_twins(&fields) { Err(A::Error::custom("a field is given twice")) } else { Ok(Fields(fields)) }
    }
}

fn has_twins<V>(fields: &[(Cow<'_, str>, V)]) -> bool {
    if fields.len() <= FEW_FIELDS {
        return fields.iter().enumerate().any(|(at, (name, _))| fields[..at].iter().any(|(other, _)| other == name));
    }
    let mut names: Vec<_> = fields.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// A name, which borrows from the text unless it holds escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\n{\n \"a\": [1, -2,\n  1.5, 18446744073709551615],\n \"b\\n\": {\"c\": null,\n\n\"d\": \"x\\u00e9\"}, \"e\": true}\n";

    #[test]
    fn json_is_read_as_the_yaml_reader_reads_it_with_the_same_lines() {
        for (text, line) in [(TEXT.to_owned(), 13), (format!("---{TEXT}"), 13), (format!("---\t{}", TEXT.trim()), 12)] {
            let quick = read(&text, 7).expect("JSON");
            assert_eq!(quick, crate::store::yaml::parse_yaml(&text, 7).expect("YAML"));
            assert_eq!(quick.line_of(&["b\n", "d"]), Some(line));
        }
    }

    #[test]
    fn what_is_no_plain_json_is_left_to_the_yaml_reader() {
        let deep = format!("{}1{}", "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
        for text in ["{a: 1}", "a: 1", "{\"a\": 1, \"a\": 2}", "{\"a\": 1} {}", "[1]", "", &deep] {
            assert_eq!(read(text, 1), None, "{text}");
        }
        let large = format!("{{\"a\": [{}0]}}", "0,".repeat(VALUES));
        assert_eq!(read(&large, 1), None);
        let wide: String = (0..40).map(|number| format!("\"{}\": 1, ", number % 39)).collect();
        assert_eq!(read(&format!("{{{wide} \"x\": 2}}"), 1), None);
    }
}
