//! Our side of a ring against the kernel's, whose side is played here: xskq_prod_submit stores the producer's counter with
//! release, xskq_cons_peek_desc loads it with acquire, and so on (net/xdp/xsk_queue.h). Rings of two slots, counters at the wrap.

use loom::sync::atomic::Ordering;
use loom::thread;

use super::rings::{consumer_over, producer_over};
use super::sys::{Mapping, SLOTS};

const START: u32 = u32::MAX;
const ENTRIES: u64 = 3;

fn slot(counter: u32) -> usize {
    counter as usize % SLOTS
}

/// Fill and transmit: the kernel reads what we pushed, all of it, in order, and no slot before it is written.
#[test]
fn the_kernel_reads_what_was_pushed() {
    loom::model(|| {
        let memory = Mapping::starting_at(START);
        let mut ours = producer_over(memory.clone(), SLOTS as u32);
        let kernel = thread::spawn(move || {
            let shared = memory.shared();
            let mut consumed = START;
            let mut seen = Vec::new();
            for _ in 0..2 {
                let produced = shared.producer.load(Ordering::Acquire);
                while consumed != produced {
                    seen.push(shared.slots[slot(consumed)].with(|place| unsafe { place.read() }));
                    consumed = consumed.wrapping_add(1);
                }
                shared.consumer.store(consumed, Ordering::Release);
            }
            (seen, memory)
        });
        let mut pushed = 0;
        for _ in 0..ENTRIES {
            if ours.push(pushed + 10) {
                pushed += 1;
            }
            ours.publish();
        }
        let (mut seen, memory) = kernel.join().expect("the kernel's side");
        let consumed = START.wrapping_add(seen.len() as u32);
        for left in 0..ours.waiting() {
            seen.push(memory.shared().slots[slot(consumed.wrapping_add(left))].with(|place| unsafe { place.read() }));
        }
        assert_eq!(seen, (0..pushed).map(|number| number + 10).collect::<Vec<u64>>());
        assert!(pushed >= SLOTS as u64);
    });
}

/// Receive and completion: we read what the kernel wrote, and it writes no slot that we have not released.
#[test]
fn we_read_what_the_kernel_wrote() {
    loom::model(|| {
        let memory = Mapping::starting_at(START);
        let mut ours = consumer_over(memory.clone(), SLOTS as u32);
        let kernel = thread::spawn(move || {
            let shared = memory.shared();
            let mut produced = START;
            let mut written = 0;
            for _ in 0..ENTRIES {
                let consumed = shared.consumer.load(Ordering::Acquire);
                if produced.wrapping_sub(consumed) < SLOTS as u32 {
                    shared.slots[slot(produced)].with_mut(|place| unsafe { place.write(written + 10) });
                    written += 1;
                    produced = produced.wrapping_add(1);
                    shared.producer.store(produced, Ordering::Release);
                }
            }
            written
        });
        let mut seen = Vec::new();
        let mut take = |seen: &mut Vec<u64>| {
            assert!(ours.available() <= SLOTS as u32);
            while let Some(value) = ours.pop() {
                seen.push(value);
            }
            ours.release();
        };
        (0..2).for_each(|_| take(&mut seen));
        let written = kernel.join().expect("the kernel's side");
        take(&mut seen);
        assert_eq!(seen, (0..written).map(|number| number + 10).collect::<Vec<u64>>());
    });
}
