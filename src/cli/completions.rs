//! `capture-worker completions`: prints a script that completes command lines in a shell.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::{Cli, Exit, print::print_verbatim};

#[derive(clap::Args)]
pub(super) struct Completions {
    /// The shell that the script is for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Exit {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "capture-worker", &mut script);
        print_verbatim(&String::from_utf8_lossy(&script));
        Exit::Done
    }
}
