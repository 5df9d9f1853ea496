//! Why the agent's file is refused.

use std::path::PathBuf;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("could not read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a field that does not exist or of another type; the source names the line.
    #[error("the configuration {} cannot be understood", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A field has a value it may not have.
    #[error("the configuration {} has a wrong value: {field} = {value}: {reason}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The field, with its section.
        field: &'static str,
        /// What it says.
        value: String,
        /// Why that is wrong.
        reason: &'static str,
    },
}
