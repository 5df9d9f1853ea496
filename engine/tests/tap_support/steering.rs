//! The program that steers what comes out of a TAP to its queues, run by the kernel on frames of these tests' making.

use millrace_engine::port::tap::SteeringRun;

fn run(program: &SteeringRun, frame: &[u8]) -> u32 {
    program.answer(frame).expect("a test run")
}

struct Flow {
    addresses: [Vec<u8>; 2],
    ports: [u16; 2],
    protocol: u8,
    options: usize,
    fragment: u16,
}

impl Flow {
    fn frame(&self, reverse: bool) -> Vec<u8> {
        let (from, to) = if reverse { (1, 0) } else { (0, 1) };
        let mut frame = vec![2, 0, 0, 0, 0, to as u8, 2, 0, 0, 0, 0, from as u8];
        if self.addresses[0].len() == 4 {
            frame.extend([0x08, 0x00, 0x45 + (self.options / 4) as u8, 0, 0, 0, 0, 0]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([64, self.protocol, 0, 0]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, self.protocol, 64]);
        }
        frame.extend(&self.addresses[from]);
        frame.extend(&self.addresses[to]);
        frame.extend(vec![1; self.options]);
        frame.extend(self.ports[from].to_be_bytes());
        frame.extend(self.ports[to].to_be_bytes());
        frame.resize(frame.len().max(60) + 16, 0);
        frame
    }
}

fn ipv4(client: u8, port: u16) -> Flow {
    Flow {
        addresses: [vec![10, 1, 0, client], vec![10, 1, 0, 9]],
        ports: [port, 80],
        protocol: 6,
        options: 0,
        fragment: 0x4000,
    }
}

pub(crate) fn both_directions_agree_and_flows_spread() {
    let program = SteeringRun::load().expect("the verifier accepts the program");
    let wide = |last: u8| [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 11], &[last]].concat();
    for queues in [2u32, 3, 4, 16] {
        let mut counts = vec![0u32; queues as usize];
        for number in 0..1600u16 {
            let mut flow = ipv4((number % 7) as u8, 32_768 + number);
            flow.protocol = [6, 17, 132][number as usize % 3];
            flow.options = if number % 5 == 0 { 8 } else { 0 };
            if number % 2 == 1 {
                flow.addresses = [wide((number % 11) as u8), wide(99)];
                flow.options = 0;
            }
            let queue = run(&program, &flow.frame(false)) % queues;
            assert_eq!(queue, run(&program, &flow.frame(true)) % queues, "flow {number} of {queues} queues");
            counts[queue as usize] += 1;
        }
        let fair = 1600 / queues;
        assert!(counts.iter().all(|count| *count > fair / 2 && *count < fair * 2), "{counts:?}");
    }
}

pub(crate) fn fragments_and_portless_protocols_go_by_addresses() {
    let program = SteeringRun::load().expect("the verifier accepts the program");
    let result = |change: fn(&mut Flow), port| {
        let mut flow = ipv4(1, port);
        change(&mut flow);
        run(&program, &flow.frame(false))
    };
    let cases: [fn(&mut Flow); 3] =
        [|flow| flow.fragment = 0x2000, |flow| flow.fragment = 185, |flow| flow.protocol = 1];
    for change in cases {
        assert_eq!(result(change, 1000), result(change, 2000));
    }
    assert_ne!(result(|_| (), 1000), result(|_| (), 2000));
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
    arp.resize(60, 0);
    let first = run(&program, &arp);
    arp[11] = 2;
    assert_ne!(first, run(&program, &arp));
}
