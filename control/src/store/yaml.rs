//! Files into objects: each document on its own, so that a fault in one spares the others.
//!
//! A file is cut at its document markers before it is parsed. That is exact: a line that begins with `---` and a
//! blank may not occur inside a document (YAML 1.2.2 section 9.1.2). Each document has a budget, so that aliases
//! cannot blow up memory or time.

use std::sync::Arc;

use super::document::{Document, Located};
use super::json;
use super::object::{Object, Origin};
use crate::problem::Problem;

/// Longest file that is read.
pub(crate) const FILE_BYTES: u64 = 8 << 20;

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct FileContent {
    /// The objects, in order.
    pub(crate) objects: Vec<Object>,
    /// What cannot be read.
    pub(crate) problems: Vec<Problem>,
    /// How many documents there are, readable or not.
    pub(crate) documents: usize,
}

impl FileContent {
    /// Takes a document of `file`: an object, or a `List` of objects, as `kubectl get -o json` prints them.
    fn take(&mut self, document: Located, file: &Arc<str>, first_line: u32) {
        self.documents += 1;
        match list_items(document) {
            Ok(items) => items.into_iter().for_each(|item| {
                let line = item.line;
                self.take(item, file, line);
            }),
            Err(document) => {
                let origin = Origin { file: Arc::clone(file), line: document.line.max(first_line) };
                match Object::read(document, Some(origin)) {
                    Ok(object) => self.objects.push(object),
                    Err(error) => {
                        let problem = Problem::new(error.message).at(error.path);
                        self.problems.push(problem.in_file(file, error.line.or(Some(first_line))));
                    }
                }
            }
        }
    }
}

/// The items of a `List`, or the document that is none.
fn list_items(mut document: Located) -> Result<Vec<Located>, Located> {
    let says = |name, wanted| document.field(name).and_then(Located::text) == Some(wanted);
    if !says("apiVersion", "v1") || !says("kind", "List") {
        return Err(document);
    }
    if let Document::Fields(fields) = &mut document.value
        && let Some((_, items)) = fields.iter_mut().find(|(name, _)| name == "items")
        && let Document::List(items) = &mut items.value
    {
        return Ok(std::mem::take(items));
    }
    Err(document)
}

/// Reads the text of `file`.
pub(crate) fn read_objects(file: &Arc<str>, text: &str) -> FileContent {
    let mut content = FileContent::default();
    for (first_line, document) in documents(text) {
        match parse(document, first_line) {
            Ok(located) if located.value == Document::Null => {}
            Ok(located) => content.take(located, file, first_line),
            Err((line, message)) => {
                content.documents += 1;
                content.problems.push(Problem::new(message).in_file(file, Some(line)));
            }
        }
    }
    content
}

/// The documents of a file with content, each with the number of its first line.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        // Directives and comments before a marker belong to the document behind it.
        if marker && has_content(&text[start..offset]) {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    if has_content(&text[start..]) {
        found.push((start_line, &text[start..]));
    }
    found
}

fn has_content(text: &str) -> bool {
    let empty = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "---" || line == "..."
    };
    !text.lines().all(empty)
}

/// Parses one document that begins at `first_line` of its file; an error comes with its line in the file.
fn parse(text: &str, first_line: u32) -> Result<Located, (u32, String)> {
    json::read(text, first_line).map_or_else(|| parse_yaml(text, first_line), Ok)
}

/// The same by the YAML reader alone.
pub(super) fn parse_yaml(text: &str, first_line: u32) -> Result<Located, (u32, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 200_000,
            max_nodes: 100_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 50_000,
            max_recorded_anchor_bytes: 4 << 20,
            max_total_scalar_bytes: 8 << 20,
            max_merge_keys: 1_000,
            max_depth: 64,
            max_documents: 1,
            max_inclusion_depth: 0,
        },
        emit_comments: false,
        with_snippet: false,
        // A name may be `n` or `on`; fields that are boolean still take such words (see `fields.rs`).
        strict_booleans: true,
    };
    let mut located: Located = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| u32::try_from(location.line()).unwrap_or(1)).max(1);
        (first_line + line - 1, error.without_snippet().to_string())
    })?;
    located.shift(first_line - 1);
    Ok(located)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_its_items_and_a_fault_in_one_spares_the_others() {
        let text = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\
            {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}},\n\
            {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"B\"}},\n\
            {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"c\"}}]}\n";
        let content = read_objects(&Arc::from("list.json"), text);
        let lines: Vec<_> =
            content.objects.iter().map(|object| object.origin.as_ref().map(|origin| origin.line)).collect();
        assert_eq!(lines, [Some(2), Some(4)]);
        assert_eq!(content.problems.len(), 1, "{:?}", content.problems);
        assert!(content.problems[0].to_string().starts_with("list.json:3: "), "{}", content.problems[0]);
        assert_eq!(content.documents, 4, "a list is never a file of one object");
    }
}
