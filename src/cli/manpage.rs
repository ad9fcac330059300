//! `capture-worker manpage`: prints the manual page of a command.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::{Cli, Exit, print::print_verbatim, print_error};

#[derive(clap::Args)]
pub(super) struct ManPage {
    /// The command whose page is printed, such as `dead replay`. Without it, the main page is
    /// printed
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl ManPage {
    pub(super) fn run(&self) -> Exit {
        // The commands `help` would be listed among the commands of each page.
        let mut main = Cli::command().disable_help_subcommand(true);
        main.build();
        let (mut found, mut path) = (&main, main.get_name().to_owned());
        for name in &self.command {
            let Some(command) = found.find_subcommand(name) else {
                print_error(&format!(
                    "error: there is no command `{path} {name}`: `{path} --help` lists the commands"
                ));
                return Exit::Usage;
            };
            path = format!("{path} {}", command.get_name());
            found = command;
        }
        match page(found) {
            Ok(page) => {
                print_verbatim(&page);
                Exit::Done
            }
            Err(error) => {
                print_error(&format!("error: cannot make the manual page of `{path}`: {error}"));
                Exit::Failed
            }
        }
    }
}

/// The page in the format of `man`. The examples have a section of their own, in which each command
/// keeps its line.
fn page(command: &Command) -> io::Result<String> {
    let version = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    Man::new(command.clone().after_help(None::<&str>))
        .source(version)
        .manual("capture-worker")
        .render(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    if let Some(examples) = command.get_after_help().map(ToString::to_string) {
        let mut section = Roff::new();
        section.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.lines().skip(1) {
            section.text([roman(line.trim_start())]);
        }
        section.control("fi", []);
        page.push_str(&section.to_roff());
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_its_examples() {
        let mut main = Cli::command();
        main.build();
        let mut open = vec![&main];
        while let Some(command) = open.pop() {
            let name = command.get_display_name().unwrap_or_else(|| command.get_name());
            let page = page(command).unwrap();
            assert!(page.contains(&format!(".TH {name} 1 ")), "{page}");
            assert!(!page.contains("Examples:") && !page.contains("EXTRA"), "{page}");
            let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
            open.extend(commands);
            let has_examples = page.contains(".SH EXAMPLES\n.nf\ncapture\\-worker ");
            assert!(has_examples, "{name} has no examples: {page}");
        }
    }
}
