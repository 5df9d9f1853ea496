//! TCP through two switches over a wire that loses, doubles and reorders: every byte arrives, no frame is lost track of.

use millrace_tests::random::Rerun;
use millrace_tests::tcp_stream::{StreamTest, run};

/// Families, sizes and wires; each row is run with its own seed.
#[test]
fn streams_arrive_whole() {
    let plain = StreamTest {
        ipv6: false,
        ipv6_underlay: false,
        workers: 1,
        units: false,
        bytes: 4_000_000,
        lost: 0,
        doubled: 0,
        delayed: 0,
        seed: 1,
    };
    let bad = StreamTest { lost: 5, doubled: 10, delayed: 20, bytes: 2_000_000, ..plain };
    let worse = StreamTest { lost: 10, doubled: 30, delayed: 100, bytes: 400_000, ..plain };
    let rows = [
        plain,
        StreamTest { ipv6: true, seed: 2, ..plain },
        StreamTest { units: true, workers: 2, seed: 3, ..plain },
        StreamTest { units: true, ipv6: true, ipv6_underlay: true, seed: 4, ..plain },
        StreamTest { seed: 5, ..bad },
        StreamTest { ipv6: true, workers: 2, seed: 6, ..bad },
        StreamTest { units: true, seed: 7, ..bad },
        StreamTest { units: true, ipv6: true, workers: 2, seed: 8, ..bad },
        StreamTest { ipv6_underlay: true, units: true, seed: 9, ..bad },
        StreamTest { seed: 10, ..worse },
        StreamTest { ipv6: true, units: true, seed: 11, ..worse },
    ];
    for row in rows {
        let _rerun = Rerun { test: "tcp_peers", seed: row.seed };
        let result = run(&row);
        println!("{row:?}: {result:?}");
        assert!(result.lost > 0 || row.lost == 0, "the wire lost nothing");
        assert!(result.joined_units > 0, "nothing was joined for the receiving pod");
    }
}
