//! What the control plane publishes.
pub mod lookup;
