//! `millrace demo`.
#![allow(dead_code)]
mod interruption;
mod reference;
mod traffic;
