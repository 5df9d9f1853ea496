//! The control plane of Millrace.
