//! The command line: the only place that prints. Logs go to stderr; output is for people on a terminal, and for programs
//! with `--json`.

mod audit;
mod check;
mod dead;
mod desk;
mod json;
mod name_list;
mod print;
mod run;
mod sandbox;
mod settings;
mod status;
mod submit;
mod tls;
mod watch;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::OsStringValueParser,
    parser::ValueSource,
};

use self::print::{complain, has_failed, is_lost, say, say_json, say_json_part};

/// Header tables nest as deep as their sender likes, and what walks them goes down with them. Only what is used of a stack
/// takes memory.
const STACK_BYTES: usize = 64 << 20;

/// Exit codes of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Bad usage or settings; nothing was connected to.
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::from(0),
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(64),
        }
    }
}

/// Turns shipment jobs from RabbitMQ into exactly one capture each at the Alipay+/Antom gateway.
#[derive(Parser)]
#[command(name = "capture-worker", version, max_term_width = 100)]
struct Cli {
    /// Settings file (TOML). Its keys override the built-in defaults; variables `CAPTURE__SECTION__KEY` override both.
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
    /// Consume jobs until SIGTERM or SIGINT; then finish those in flight and hand the rest back
    ///
    /// Exit codes: 0 drained; 1 the drain overran, a second signal came a second or more after the first, or the broker's
    /// topology is not as it must be; 64 bad settings.
    Run,
    /// Publish jobs, confirmed; nothing if one of them is invalid
    ///
    /// Exit codes: 0 all are in the queue; 1 something was invalid or not confirmed; 64 bad settings.
    Submit(submit::Submit),
    #[command(subcommand)]
    Dead(dead::Dead),
    Audit(audit::Audit),
    Status(status::StatusArgs),
    /// The gateway's double, to play with and to test against: signatures, ledger, idempotency, faults
    Sandbox(sandbox::SandboxArgs),
    /// Show the settings, and try the keys, the broker, Redis and the gateway; all errors at once
    ///
    /// Exit codes: 0 all is well; 1 something does not answer as it must; 64 bad settings.
    Check(check::Check),
}

/// Parses the arguments, does what they say, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    crate::install_crypto();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        // A variable that is empty counts as absent, as all others do: `CAPTURE_CONFIG=${NOT_SET}`.
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
    // Bodies of others may be nested deeper than the stack of a first thread takes.
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(|| run(cli));
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(exit)) => exit,
        Ok(Err(_)) => Exit::Failed.into(),
        Err(error) => fail(&format!("no thread can start: {error}"), Exit::Failed),
    }
}

/// A worker runs on one thread: it takes less CPU for each job than on several, and more workers use more cores.
fn run(cli: Cli) -> ExitCode {
    let mut runtime = match cli.command {
        Command::Run => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.thread_stack_size(STACK_BYTES).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime can't start: {error}"), Exit::Failed),
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
        }
    });
    // Blocking readers of stdin and threads of half-open connections must not hold up the end.
    runtime.shutdown_background();
    print::finish(exit).into()
}

fn fail(line: &str, exit: Exit) -> ExitCode {
    complain(&format!("error: {line}"));
    exit.into()
}
