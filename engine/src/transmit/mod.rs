//! From a decided packet to bytes on a port: what a port cannot take is brought into a form that it can.

#[cfg(test)]
mod frames;
pub(crate) mod field;
pub mod joining;
pub mod segmentation;

