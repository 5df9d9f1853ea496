//! One file per protocol: where its fields lie and how to build one.
