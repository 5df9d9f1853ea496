//! `millrace-emulator [ADDRESS [DEFINITIONS.yaml…]]`: the emulator by itself, for `kubectl` and for looking at it.

use std::process::ExitCode;

use millrace_emulator::{Emulator, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options::default();
    if let Some(address) = arguments.next() {
        options.address = address.parse()?;
    }
    for file in arguments {
        options.definitions.extend(serde_saphyr::from_multiple::<serde_json::Value>(&std::fs::read_to_string(file)?)?);
    }
    let emulator = Emulator::start(options)?;
    println!("{}", emulator.kubeconfig());
    loop {
        std::thread::park();
    }
}
