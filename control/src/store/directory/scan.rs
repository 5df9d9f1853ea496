//! Reading the directory: which files changed, what they hold, which objects that makes.
//!
//! A file is read again when its inode, size or times differ, and parsed again when its bytes differ, so that a rescan
//! of a quiet directory costs one `stat` for each file and returns the very scan before. A file that changed within
//! the last second is read again in any case, since a second change within one tick of the file system's clock would
//! look the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::problem::Problem;
use crate::stable_hash::ContentHash;
use crate::store::yaml::{self, FILE_BYTES, FileContent};
use crate::store::{Object, ObjectKey, StoreError};

/// Files younger than this are read again at every scan.
const UNSETTLED: Duration = Duration::from_secs(1);

/// Files of one directory that are read.
const FILES: usize = 50_000;

/// The directory as of one moment.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// All objects, last good versions included.
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    /// All problems, sorted.
    pub(super) problems: Vec<Problem>,
    alone: BTreeSet<Arc<str>>,
}

impl Scan {
    /// Whether the file holds exactly one document and it is readable.
    pub(super) fn is_alone(&self, file: &str) -> bool {
        self.alone.contains(file)
    }
}

/// What was read of each file.
#[derive(Debug, Default)]
pub(super) struct Cache {
    files: BTreeMap<Arc<str>, CachedFile>,
    /// The scan of these files; `None` once one of them differs.
    joined: Option<Arc<Scan>>,
}

#[derive(Debug)]
struct CachedFile {
    signature: Signature,
    settled: bool,
    /// Hash of the bytes; `None` if they could not be read.
    text: Option<u128>,
    objects: Vec<Object>,
    /// Objects the file held before and that may be in the documents that cannot be read.
    last_good: Vec<Object>,
    problems: Vec<Problem>,
    documents: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Signature {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Cache {
    /// Brings the cache up to date with the directory and joins its files; the same scan again if nothing changed.
    pub(super) fn refresh(&mut self, directory: &Path) -> Result<Arc<Scan>, StoreError> {
        let names = file_names(directory)?;
        let mut extra = Vec::new();
        if names.len() > FILES {
            extra.push(Problem::new(format!("more than {FILES} files; the last ones by name are not read")));
        }
        let names: BTreeSet<_> = names.into_iter().take(FILES).collect();
        let gone: Vec<_> = self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        for name in names {
            self.refresh_file(directory, &name);
        }
        let joined = self.joined.take().unwrap_or_else(|| Arc::new(self.join(extra)));
        self.joined = Some(Arc::clone(&joined));
        Ok(joined)
    }

    fn forget(&mut self, name: &str) {
        if self.files.remove(name).is_some() {
            self.joined = None;
        }
    }

    fn refresh_file(&mut self, directory: &Path, name: &Arc<str>) {
        let path = directory.join(name.as_ref());
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // Gone since it was listed, or no file at all.
            Ok(_) => return self.forget(name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.forget(name),
            Err(error) => return self.unreadable(name, format!("cannot be read: {error}")),
        };
        let signature = Signature::from(&metadata);
        if self.files.get(name).is_some_and(|cached| cached.settled && cached.signature == signature) {
            return;
        }
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(message) => return self.unreadable(name, message),
        };
        let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let settled = age.is_some_and(|age| age > UNSETTLED);
        let mut hash = ContentHash::default();
        hash.update(text.as_bytes());
        let hash = Some(hash.finish());
        match self.files.get_mut(name) {
            Some(cached) if cached.text == hash => (cached.signature, cached.settled) = (signature, settled),
            _ => {
                let content = yaml::read_objects(name, &text);
                self.replace(name, content, (signature, settled, hash));
            }
        }
    }

    /// Puts what a file holds now in the place of what it held.
    fn replace(&mut self, name: &Arc<str>, mut content: FileContent, read: (Signature, bool, Option<u128>)) {
        let (objects, kept) =
            self.files.remove(name).map(|cached| (cached.objects, cached.last_good)).unwrap_or_default();
        let emptied = content.documents == 0 && content.problems.is_empty() && objects.len() + kept.len() > 0;
        if emptied {
            // What a full disk or a writer between truncating and writing leaves behind.
            content.problems.push(Problem::new("is empty; delete the file to delete its objects").in_file(name, None));
        }
        let last_good =
            if content.problems.is_empty() { Vec::new() } else { missing_from(&content.objects, objects, kept) };
        let FileContent { objects, problems, documents } = content;
        let (signature, settled, text) = read;
        let cached = CachedFile { signature, settled, text, objects, last_good, problems, documents };
        self.files.insert(Arc::clone(name), cached);
        self.joined = None;
    }

    /// Keeps what the file held and records why it cannot be read now.
    fn unreadable(&mut self, name: &Arc<str>, message: String) {
        let problem = Problem::new(message).in_file(name, None);
        if self.files.get(name).is_some_and(|cached| cached.text.is_none() && cached.problems == [problem.clone()]) {
            return;
        }
        let content = FileContent { problems: vec![problem], ..FileContent::default() };
        self.replace(name, content, (Signature::default(), false, None));
    }

    /// Readable objects first, so that a last good version never hides one that can be read in another file.
    fn join(&self, mut problems: Vec<Problem>) -> Scan {
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for cached in self.files.values() {
            problems.extend(cached.problems.iter().cloned());
            for object in &cached.objects {
                match objects.get(&object.key) {
                    Some(first) => problems.extend(written_twice(first, object)),
                    None => drop(objects.insert(object.key.clone(), object.clone())),
                }
            }
        }
        for object in self.files.values().flat_map(|cached| &cached.last_good) {
            objects.entry(object.key.clone()).or_insert_with(|| object.clone());
        }
        problems.sort_unstable();
        let single = |cached: &CachedFile| cached.documents == 1 && cached.objects.len() == 1;
        let alone = self.files.iter().filter(|(_, cached)| single(cached)).map(|(name, _)| Arc::clone(name)).collect();
        Scan { objects, problems, alone }
    }
}

fn missing_from(present: &[Object], objects: Vec<Object>, kept: Vec<Object>) -> Vec<Object> {
    let present: BTreeSet<&ObjectKey> = present.iter().map(|object| &object.key).collect();
    objects.into_iter().chain(kept).filter(|object| !present.contains(&object.key)).collect()
}

fn written_twice(first: &Object, second: &Object) -> Option<Problem> {
    let (first, origin) = (first.origin.as_ref()?, second.origin.as_ref()?);
    let message = format!("written twice; the one in {} line {} counts", first.file, first.line);
    Some(Problem::new(message).in_file(&origin.file, Some(origin.line)).of(&second.key))
}

/// Names of the files that count, sorted.
fn file_names(directory: &Path) -> Result<BTreeSet<Arc<str>>, StoreError> {
    let failed = |source| StoreError::Io { action: "read the directory", path: directory.to_owned(), source };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| counts(name)) {
            names.insert(Arc::from(name));
        }
    }
    Ok(names)
}

/// Whether a file of this name is read.
pub(super) fn counts(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|suffix| name.ends_with(suffix))
}

fn read_text(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(format!("is longer than {FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("is not UTF-8 text (line {})", line + 1)
    })
}
