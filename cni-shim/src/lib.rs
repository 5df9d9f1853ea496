//! The CNI plugin of Millrace.
