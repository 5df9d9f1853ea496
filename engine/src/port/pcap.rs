//! Replay and record.
