//! The command line. Only this module prints: the output of a command goes to stdout, as text for
//! people or, with `--json`, as JSON for programs; errors, questions and logs go to stderr.

mod audit;
mod check;
mod completions;
mod dead;
mod desk;
mod exit;
mod json;
mod manpage;
mod name_list;
mod print;
mod run;
mod sandbox;
mod settings;
mod status;
mod submit;
mod table;
mod tls;
mod watch;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::OsStringValueParser,
    parser::ValueSource,
};

pub(crate) use self::exit::Exit;
use self::print::{has_failed, is_lost, print_error, print_json, print_json_part, print_line};

/// The stack of each thread, in bytes. A publisher decides how deep header tables and JSON bodies
/// are nested, and the code that walks them recurses once per level: a default stack can overflow.
/// Only the part of a stack that is used takes memory.
const STACK_BYTES: usize = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  capture-worker check                      # are settings, keys and services usable?
  capture-worker --config worker.toml run   # consume jobs until SIGTERM or Ctrl-C
  capture-worker dead list                  # what failed, and what to do about it";

const RUN_EXAMPLES: &str = "\
Examples:
  capture-worker run
  capture-worker run --config worker.toml";

const DEAD_EXAMPLES: &str = "\
Examples:
  capture-worker dead list
  capture-worker dead replay --all --dry-run
  capture-worker dlq show shipment-1001 --inquire";

const SUBMIT_EXAMPLES: &str = "\
Examples:
  capture-worker submit jobs.jsonl
  jq -r .body archive.jsonl | capture-worker submit";

const SANDBOX_EXAMPLES: &str = "\
Examples:
  capture-worker sandbox
  capture-worker sandbox --listen 127.0.0.1:0 --json
  capture-worker sandbox --strict --latency 200ms --keys ./sandbox-keys";

const CHECK_EXAMPLES: &str = "\
Examples:
  capture-worker check
  capture-worker check --config worker.toml --json | jq .checks";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  capture-worker completions bash > ~/.local/share/bash-completion/completions/capture-worker
  capture-worker completions zsh > ~/.zfunc/_capture-worker
  capture-worker completions fish > ~/.config/fish/completions/capture-worker.fish";

const MANPAGE_EXAMPLES: &str = "\
Examples:
  capture-worker manpage | man -l -
  capture-worker manpage dead replay > capture-worker-dead-replay.1";

/// Consumes shipment jobs from RabbitMQ and makes exactly one capture for each of them at the
/// Alipay+/Antom gateway.
#[derive(Parser)]
#[command(name = "capture-worker", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// Settings file (TOML). Its keys override the built-in defaults. Environment variables
    /// `CAPTURE__SECTION__KEY` override both.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CAPTURE_CONFIG",
        value_parser = OsStringValueParser::new()
    )]
    config: Option<OsString>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Consume jobs until SIGTERM or SIGINT, then finish the jobs in flight and stop
    ///
    /// Jobs that were delivered but not begun return to the queue. A broker, Redis or gateway that
    /// is unavailable at start or later is waited for.
    ///
    /// Exit codes: 0: all jobs in flight were settled. 1: the drain took longer than
    /// `drain.timeout`, a second signal came a second or more after the first, the address
    /// `http.listen` cannot be used, or exchange or queue declarations do not match. 64: bad
    /// settings.
    #[command(after_help = RUN_EXAMPLES)]
    Run,
    /// Publish jobs and wait for the broker's confirms
    ///
    /// All jobs are validated first. If one of them is invalid, none is published.
    ///
    /// Exit codes: 0: all jobs are in the queue. 1: a job is invalid or was not confirmed. 64: bad
    /// settings.
    #[command(after_help = SUBMIT_EXAMPLES)]
    Submit(submit::Submit),
    #[command(subcommand, visible_alias = "dlq", after_help = DEAD_EXAMPLES)]
    Dead(dead::Dead),
    Audit(audit::Audit),
    Status(status::StatusArgs),
    /// Run a simulated gateway for development and tests
    ///
    /// It verifies and makes signatures, keeps a ledger, is idempotent by captureRequestId, and can
    /// be scripted over HTTP to fail, to delay or not to reply. Its page in a browser shows
    /// payments and requests. It stops on SIGTERM or SIGINT.
    #[command(after_help = SANDBOX_EXAMPLES)]
    Sandbox(sandbox::SandboxArgs),
    /// Print the settings, and test the broker, Redis, the gateway and its keys
    ///
    /// It reports everything that is wrong at once. It leaves no message and no key behind, and
    /// captures nothing.
    ///
    /// Exit codes: 0: everything works. 1: a service cannot be used as a worker needs it. 64: bad
    /// settings.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(check::Check),
    /// Print a script that completes command lines in a shell
    ///
    /// It reads no settings.
    ///
    /// Exit codes: 0: the script was printed. 1: the output could not be written. 64: the shell is
    /// not supported.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(completions::Completions),
    /// Print the manual page of a command, in the format of `man`
    ///
    /// It reads no settings.
    ///
    /// Exit codes: 0: the page was printed. 1: the output could not be written. 64: there is no
    /// such command.
    #[command(after_help = MANPAGE_EXAMPLES)]
    Manpage(manpage::ManPage),
}

/// Parses the arguments, runs the command, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    crate::install_crypto();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        // An empty variable counts as absent, like every other one: `CAPTURE_CONFIG=${NOT_SET}`
        // must not name a file without a name.
        if matches.value_source("config") == Some(ValueSource::EnvVariable) {
            cli.config.take_if(|file| file.is_empty());
        }
        Ok(cli)
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let printed = error.print();
            if !error.use_stderr() {
                print::printed(printed);
            }
            return print::finish(exit).into();
        }
    };
    // The stack of the main thread is too small for deeply nested bodies: see STACK_BYTES.
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(|| run(cli));
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(exit)) => exit,
        Ok(Err(_)) => Exit::Failed.into(),
        Err(error) => fail(&format!("cannot start a thread: {error}"), Exit::Failed),
    }
}

/// Runs a command. A worker runs on one thread: it then needs less CPU for each job than on
/// several. To use more cores, start more workers.
fn run(cli: Cli) -> ExitCode {
    let mut runtime = match cli.command {
        Command::Run => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.thread_stack_size(STACK_BYTES).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(&format!("cannot start the async runtime: {error}"), Exit::Failed);
        }
    };
    let config = cli.config.as_deref().map(Path::new);
    let exit = runtime.block_on(async {
        match cli.command {
            Command::Run => run::run(config).await,
            Command::Submit(submit) => submit.run(config).await,
            Command::Dead(dead) => dead.run(config).await,
            Command::Audit(audit) => audit.run(config).await,
            Command::Status(status) => status.run(config).await,
            Command::Sandbox(sandbox) => sandbox.run().await,
            Command::Check(check) => check.run(config).await,
            Command::Completions(completions) => completions.run(),
            Command::Manpage(page) => page.run(),
        }
    });
    // A thread that blocks on stdin or on a half-open connection must not delay the exit.
    runtime.shutdown_background();
    print::finish(exit).into()
}

fn fail(line: &str, exit: Exit) -> ExitCode {
    print_error(&format!("error: {line}"));
    exit.into()
}
