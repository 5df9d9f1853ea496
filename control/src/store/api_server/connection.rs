//! Where the server is and who we are to it: a kubeconfig, or what a pod finds in its file system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A stream that is silent for so long is dead: the server sends bookmarks about once a minute.
const SILENCE: Duration = Duration::from_secs(100);

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How to reach a server.
#[derive(Clone)]
pub struct Connection {
    config: Config,
    server: String,
}

impl std::fmt::Debug for Connection {
    /// Credentials stay out of logs.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why a server cannot even be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {} cannot be used", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// This process is in no pod, or its service account is not mounted.
    #[error("this process does not run in a pod of a cluster, or has no service account")]
    NotInCluster {
        /// What is missing.
        source: Box<kube::config::InClusterError>,
    },
    /// Certificates or credentials cannot be used.
    #[error("cannot speak to {server}")]
    Credentials {
        /// The server.
        server: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No thread or runtime can be had.
    #[error("could not start a thread of the store")]
    Thread {
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A runtime for one thread.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, ConnectionError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| ConnectionError::Thread { source })
}

impl Connection {
    /// As the current context of a kubeconfig says.
    ///
    /// # Errors
    /// When the file cannot be read or is incomplete.
    pub fn from_kubeconfig(file: &Path) -> Result<Self, ConnectionError> {
        let failed = |source| ConnectionError::Kubeconfig { file: file.to_owned(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(file).map_err(failed)?;
        let config = runtime()?.block_on(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()));
        Ok(Self::of(config.map_err(failed)?))
    }

    /// As a pod is told: address in its environment, token and certificate in its service account's volume. The token is
    /// read again as it changes.
    ///
    /// # Errors
    /// When this is no pod.
    pub fn in_cluster() -> Result<Self, ConnectionError> {
        let config =
            Config::incluster().map_err(|source| ConnectionError::NotInCluster { source: Box::new(source) })?;
        Ok(Self::of(config))
    }

    fn of(mut config: Config) -> Self {
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        let server = config.cluster_url.to_string();
        Self { config, server }
    }

    /// The server's address, as problems name it.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A client; to be made inside the runtime that drives it.
    pub(super) fn client(&self) -> Result<Client, ConnectionError> {
        let failed = |source| ConnectionError::Credentials { server: self.server.clone(), source: Box::new(source) };
        Client::try_from(self.config.clone()).map_err(failed)
    }
}
