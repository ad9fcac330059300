//! `capture-worker dead`: the commands that browse dead letters and act on them.

mod discard;
mod export;
mod list;
mod replay;
mod rows;
mod show;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{
    Exit, desk,
    name_list::{NameList, all},
    print_error,
    settings::{self, Service},
    watch::Watch,
};
use crate::{
    broker::{BrokerOptions, Session, TopologyMode},
    config::Settings,
    dead_letters::{Desk, DeskError, Filter, Who},
    domain::{capture::class::Class, duration},
    lease::Role,
    telemetry,
};

const LIST_EXAMPLES: &str = "\
Examples:
  capture-worker dead list
  capture-worker dead list --class risk,payer --newer-than 1d
  capture-worker dead list --json | jq '.[] | {class, distinctCaptures, money}'";

const SHOW_EXAMPLES: &str = "\
Examples:
  capture-worker dead show shipment-1001
  capture-worker dead show shipment-1001 --inquire";

const REPLAY_EXAMPLES: &str = "\
Examples:
  capture-worker dead replay --all --dry-run
  capture-worker dead replay --class provider --rate 5/s --canary 3 --reason INC-412
  capture-worker dead replay --id shipment-1001 --capture-value 2000";

const DISCARD_EXAMPLES: &str = "\
Examples:
  capture-worker dead discard --class authorization --reason INC-412 --dry-run
  capture-worker dead discard --id shipment-1001 --reason 'paid in cash' --yes";

const EXPORT_EXAMPLES: &str = "\
Examples:
  capture-worker dead export > dead-letters.jsonl
  capture-worker dead export --id shipment-1001 | jq -r .body | capture-worker submit";

/// Browse, replay and discard dead letters: jobs that failed and wait for an operator
#[derive(clap::Subcommand)]
pub(super) enum Dead {
    /// Print a summary of each class; with --class, each dead letter
    ///
    /// The summary has the number of dead letters, of distinct captures among them and their money,
    /// the ages, the most frequent codes and what to do. Two dead letters with the same
    /// captureRequestId are one capture, whose money counts once. With --class, the first 100 are
    /// printed unless --limit or --all is given. Reading changes nothing.
    ///
    /// Exit codes: 0: the list was printed. 1: the broker could not be used, or the command was
    /// interrupted. 64: bad usage or settings.
    #[command(after_help = LIST_EXAMPLES)]
    List(list::List),
    /// Print everything that is known about one dead letter, and the possible actions as commands
    ///
    /// Reading changes nothing.
    ///
    /// Exit codes: 0: the dead letter was printed. 1: it does not exist, or the broker could not be
    /// used. 64: bad usage or settings.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(show::Show),
    /// Send dead letters back to the queue of jobs, as the policy of their class allows
    ///
    /// The gateway is asked about each job first. A dead letter that the policy refuses stays, and
    /// the reason and the safe alternative are printed. Running the command again is safe. On a
    /// terminal it asks for confirmation; without a terminal it does not.
    ///
    /// Exit codes: 0: all were replayed. 1: something was refused or failed. 64: bad usage or
    /// settings.
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Remove dead letters for good, with a reason
    ///
    /// The gateway is asked first about those that may have captured (the classes `conflict`,
    /// `in_doubt` and `poison`, and verdicts without a signature), and its reply is kept in the
    /// audit. Those whose capture succeeded without a published result, or whose outcome is
    /// unknown, stay.
    ///
    /// Exit codes: 0: all were discarded. 1: something was refused or failed. 64: bad usage or
    /// settings.
    #[command(after_help = DISCARD_EXAMPLES)]
    Discard(discard::DiscardArgs),
    /// Print dead letters as JSON lines, with their headers and bodies
    ///
    /// Reading changes nothing.
    ///
    /// Exit codes: 0: all were printed. 1: the broker could not be used, or the command was
    /// interrupted. 64: bad usage or settings.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(export::Export),
}

impl Dead {
    pub(super) async fn run(self, config: Option<&Path>) -> Exit {
        let services = match &self {
            Self::Replay(_) => Service::ALL,
            _ => &[Service::Broker, Service::Redis],
        };
        let settings = match settings::load(config, services) {
            Ok(settings) => settings,
            Err(exit) => return exit,
        };
        match self {
            Self::List(list) => list.run(&settings).await,
            Self::Show(show) => show.run(&settings).await,
            Self::Replay(replay) => replay.run(&settings).await,
            Self::Discard(discard) => discard.run(&settings).await,
            Self::Export(export) => export.run(&settings).await,
        }
    }
}

/// The options that select dead letters.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FilterArgs {
    /// Only dead letters of these classes, separated by commas
    #[arg(long, value_name = "CLASS")]
    class: Vec<NameList<Class>>,
    /// Only dead letters with these result codes, separated by commas
    #[arg(long, value_name = "CODE")]
    code: Vec<NameList<String>>,
    /// Only dead letters with this captureRequestId. May be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only dead letters with this paymentId. May be repeated
    #[arg(long, value_name = "ID")]
    payment: Vec<String>,
    /// Only dead letters older than this age, such as 90s, 15m, 2h or 3d
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only dead letters newer than this age
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    newer_than: Option<Duration>,
    /// At most this many dead letters, the oldest of each class first
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Every dead letter that the other options select. Commands that change something need this
    /// option if there is no filter
    #[arg(long)]
    all: bool,
}

impl FilterArgs {
    fn filter(&self) -> Filter {
        Filter {
            classes: all(&self.class),
            codes: all(&self.code),
            ids: self.id.clone(),
            payments: self.payment.clone(),
            older_than: self.older_than,
            newer_than: self.newer_than,
        }
    }

    /// The filter of a command that changes dead letters. Without a filter it would act on all of
    /// them, so that needs an explicit `--all`.
    fn names_dead_letters(&self) -> Result<Filter, Exit> {
        let filter = self.filter();
        if filter.is_empty() && !self.all {
            print_error(
                "error: no dead letters are selected: use --class, --code, --id, --payment, \
                 --older-than or --newer-than, or --all for every dead letter",
            );
            return Err(Exit::Usage);
        }
        Ok(filter)
    }
}

/// The open connections of a command, and the task that keeps Redis connected.
pub(super) struct Opened {
    pub(super) desk: Desk,
    keeper: Option<JoinHandle<()>>,
}

/// What a command is going to do, which decides what it connects to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Browse queues. Needs the broker alone, and declares nothing.
    Look,
    /// Browse queues and ask the gateway.
    Inquire,
    /// Predict a replay: browse queues, ask the gateway and Redis.
    Plan,
    /// Discard: declares what is missing, because the audit queue must exist.
    Discard,
    /// Replay: declares what is missing, and needs the broker, Redis and the gateway.
    Replay,
}

impl Purpose {
    const fn acts(self) -> bool {
        matches!(self, Self::Discard | Self::Replay)
    }

    const fn needs_gateway(self) -> bool {
        matches!(self, Self::Inquire | Self::Plan | Self::Replay)
    }

    const fn needs_redis(self) -> bool {
        matches!(self, Self::Plan | Self::Replay)
    }
}

impl Opened {
    /// Connects to what the purpose needs. Prints the errors.
    pub(super) async fn open(
        settings: &Settings,
        purpose: Purpose,
        who: (Who, Option<String>),
        watch: &Watch,
    ) -> Result<Self, Exit> {
        // An error means that logging was started already, which is no problem here.
        drop(telemetry::start(settings.log.format, "capture_worker=warn", None));
        let (broker, leases) =
            match (settings::broker_options(settings), settings::leases(settings, Role::Command)) {
                (Ok(broker), Ok(leases)) => (broker, leases),
                (broker, leases) => {
                    let errors = [broker.err(), leases.err()].into_iter().flatten().flatten();
                    errors.for_each(|error| print_error(&format!("error: {error}")));
                    return Err(Exit::Usage);
                }
            };
        let gateway = settings::gateway(settings);
        if let (Err(errors), true) = (&gateway, purpose.needs_gateway()) {
            errors.iter().for_each(|error| print_error(&format!("error: {error}")));
            return Err(Exit::Usage);
        }
        let topology = if purpose.acts() { broker.topology } else { TopologyMode::None };
        // Wait queues are declared by workers. An operator's user need not have that permission.
        let broker = BrokerOptions { topology, delays: Vec::new(), ..broker };
        let session = Session::open(&broker).await.map_err(|error| {
            print_error(&format!("error: cannot use the broker: {error}"));
            Exit::Failed
        })?;
        let keeper =
            if purpose.needs_redis() { Some(desk::connect_redis(&leases).await) } else { None };
        let desk = Desk {
            session: Arc::new(session),
            gateway: gateway.map_err(|errors| errors.join("; ")),
            leases,
            codes: settings.classes.clone(),
            forward: settings.gateway.forward_fields(),
            who: who.0,
            reason: who.1,
            stop: watch.stop(),
            watcher: watch.watcher(),
            may_republish: true,
        };
        Ok(Self { desk, keeper })
    }

    /// Closes the connections to the broker and to Redis.
    pub(super) async fn close(self) {
        self.desk.session.close().await;
        if let Some(keeper) = self.keeper {
            keeper.abort();
        }
    }
}

/// Prints why a command ended early.
fn ended(error: &DeskError) -> Exit {
    match error {
        DeskError::Interrupted => {
            print_error("interrupted: dead letters that were not reported are unchanged")
        }
        error => print_error(&format!("error: {error}")),
    }
    Exit::Failed
}
