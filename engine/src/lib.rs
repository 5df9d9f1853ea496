//! The packet engine of Millrace.
