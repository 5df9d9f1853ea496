//! Objects that are not applied yet, and the tables that would come of them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use millrace_engine::tables::Snapshot;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::observe::{CLUSTER_NETWORK_POLICY, NAMESPACE, NETWORK_POLICY, NODE, Observed, POD, Touched};
use crate::plan::LocalView;
use crate::plan::policy::PolicyPlanner;
use crate::problem::Problem;
use crate::store::yaml::{FILE_BYTES, read_objects};
use crate::store::{Event, Kind, Located, Object};

/// Kinds that policies read.
const KINDS: [Kind; 5] = [NETWORK_POLICY, CLUSTER_NETWORK_POLICY, NAMESPACE, POD, NODE];

/// Objects to be applied, or to be deleted.
#[derive(Clone, Debug)]
pub struct Proposal {
    objects: Vec<Object>,
    delete: bool,
}

/// Why there is no such proposal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposalError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Objects are wrong, each with its reason.
    #[error("{}", listed(.0))]
    Invalid(Vec<Problem>),
    /// There is no object at all.
    #[error("there is no object in what was given")]
    Empty,
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Proposal {
    /// The objects in these files of YAML or JSON; `-` is standard input.
    ///
    /// # Errors
    /// What cannot be read, and objects that the agent would refuse or that have no part in policies.
    pub fn from_files(files: &[PathBuf], delete: bool) -> Result<Self, ProposalError> {
        let (mut objects, mut problems) = (Vec::new(), Vec::new());
        for path in files {
            let text = read_text(path).map_err(|source| ProposalError::File { path: path.clone(), source })?;
            let content = read_objects(&path.display().to_string().into(), &text);
            objects.extend(content.objects);
            problems.extend(content.problems);
        }
        Self::checked(objects, problems, delete)
    }

    /// The same objects as the API carries them.
    ///
    /// # Errors
    /// As [`Proposal::from_files`].
    pub fn from_json(values: &[Value], delete: bool) -> Result<Self, ProposalError> {
        let (mut objects, mut problems) = (Vec::new(), Vec::new());
        for value in values {
            match Object::read(Located::from(value), None) {
                Ok(object) => objects.push(object),
                Err(error) => problems.push(Problem::new(error.message).at(error.path)),
            }
        }
        Self::checked(objects, problems, delete)
    }

    fn checked(objects: Vec<Object>, mut problems: Vec<Problem>, delete: bool) -> Result<Self, ProposalError> {
        for object in objects.iter().filter(|object| !KINDS.contains(&object.key.kind)) {
            let problem = Problem::new("is of a kind that policies do not read").of(&object.key);
            problems.push(match &object.origin {
                Some(origin) => problem.in_file(&origin.file, Some(origin.line)),
                None => problem,
            });
        }
        let mut observed = Observed::default();
        if !delete {
            objects.iter().for_each(|object| observed.take(Event::Applied(object.clone())));
        }
        problems.extend(observed.problems());
        match (problems.is_empty(), objects.is_empty()) {
            (false, _) => Err(ProposalError::Invalid(problems)),
            (true, true) => Err(ProposalError::Empty),
            (true, false) => Ok(Self { objects, delete }),
        }
    }

    /// The objects, for the API.
    #[must_use]
    pub fn to_json(&self) -> Vec<Value> {
        self.objects.iter().map(Object::to_json).collect()
    }

    /// The cluster as it would be.
    ///
    /// # Errors
    /// An object that is to be deleted is not there.
    pub fn cluster(&self, cluster: &Cluster) -> Result<Cluster, ProposalError> {
        let mut observed = Observed::knowing(cluster.clone());
        let mut missing = Vec::new();
        for object in &self.objects {
            if !self.delete {
                observed.take(Event::Applied(object.clone()));
                continue;
            }
            let before = objects_in(observed.cluster());
            observed.take(Event::Deleted(object.key.clone()));
            if objects_in(observed.cluster()) == before {
                missing.push(Problem::new("does not exist").of(&object.key));
            }
        }
        if missing.is_empty() { Ok(observed.into_cluster()) } else { Err(ProposalError::Invalid(missing)) }
    }

    /// The tables in force with the policies of the cluster as it would be, and what of those cannot be enforced.
    ///
    /// # Errors
    /// As [`Proposal::cluster`].
    pub fn tables(
        &self,
        tables: &Snapshot,
        cluster: &Cluster,
        local: &LocalView,
    ) -> Result<(Snapshot, Vec<Problem>), ProposalError> {
        let cluster = self.cluster(cluster)?;
        let mut planner = PolicyPlanner::default();
        let policy = planner.update(&cluster, local, &Touched::everything(&cluster));
        Ok((Snapshot { policy, ..tables.clone() }, planner.problems().cloned().collect()))
    }
}

/// Objects of the kinds that policies read.
fn objects_in(cluster: &Cluster) -> usize {
    cluster.policies.len() + cluster.namespaces.len() + cluster.pods.len() + cluster.nodes.len()
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(FILE_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}
