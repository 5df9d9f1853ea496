//! Each reject, each prefix, many mutations, and the same answers as etherparse.

use super::*;
use crate::testing::valid_packets;

#[test]
fn every_valid_packet_is_accepted() {
    for (name, bytes) in valid_packets() {
        if let Err(reason) = parse(&bytes, bytes.len()) {
            panic!("{name}: {reason}");
        }
    }
}
