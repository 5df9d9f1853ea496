//! The slow path: the ordered list of stages that decides the first packet of a flow.

pub mod decision;
