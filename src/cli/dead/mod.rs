//! `capture-worker dead`: looks and acts at dead letters.

mod discard;
mod export;
mod letters;
mod list;
mod replay;
mod show;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{
    Exit, complain, desk,
    name_list::{NameList, all},
    settings::{self, Service},
    watch::Watch,
};
use crate::{
    broker::{BrokerOptions, Session, Topology},
    config::Settings,
    dead_letters::{Desk, DeskError, Filter, Who},
    domain::{class::Class, duration},
    lease::Role,
    telemetry,
};

/// Dead letters: what failed, why, how much money it is, and what can safely be done
#[derive(clap::Subcommand)]
pub(super) enum Dead {
    /// One line for each class; with --class its letters. Nothing is changed by looking
    List(list::List),
    /// Everything that is known of one letter, and what can be done about it
    Show(show::Show),
    /// Send letters back to the queue of jobs, by the policy of their class
    ///
    /// What the policy refuses stays, with the reason and the safe alternative. Doing it twice is safe.
    ///
    /// Exit codes: 0 all went; 1 something was refused or failed; 64 bad usage or settings.
    Replay(replay::ReplayArgs),
    /// Throw letters away, with a reason
    ///
    /// Letters that may have captured (`conflict`, `in_doubt`, `poison`) are inquired about first, and that evidence is kept.
    ///
    /// Exit codes: 0 all went; 1 something was refused or failed; 64 bad usage or settings.
    Discard(discard::DiscardArgs),
    /// Print letters as JSON lines, with their headers and bodies
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

/// Which letters.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct FilterArgs {
    /// Only letters of these classes
    #[arg(long, value_name = "CLASS")]
    class: Vec<NameList<Class>>,
    /// Only letters with these result codes
    #[arg(long, value_name = "CODE")]
    code: Vec<NameList<String>>,
    /// Only letters with this captureRequestId; may be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only letters of this paymentId; may be repeated
    #[arg(long, value_name = "ID")]
    payment: Vec<String>,
    /// Only letters that were given up longer ago than this: 90s, 15m, 2h, 3d
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only letters that were given up less long ago than this
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    newer_than: Option<Duration>,
    /// At most so many letters, the oldest of each class first
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// All letters
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

    /// Whoever acts says on what.
    fn names_letters(&self) -> Result<Filter, Exit> {
        let filter = self.filter();
        if filter.is_empty() && !self.all {
            complain(
                "error: name the letters: --class, --code, --id, --payment, --older-than, --newer-than, or --all",
            );
            return Err(Exit::Usage);
        }
        Ok(filter)
    }
}

/// A desk, and what keeps it.
pub(super) struct Opened {
    pub(super) desk: Desk,
    keeper: Option<JoinHandle<()>>,
}

/// What a desk is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing is declared and nothing but the queues is needed.
    Look,
    /// And the gateway is asked.
    Inquire,
    /// And Redis.
    Plan,
    /// The audit must be there.
    Discard,
    /// All of it.
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
    /// Connects. Errors are told.
    pub(super) async fn open(
        settings: &Settings,
        purpose: Purpose,
        who: (Who, Option<String>),
        watch: &Watch,
    ) -> Result<Self, Exit> {
        // An error says that logs go somewhere already.
        drop(telemetry::start(settings.log.format, "capture_worker=warn", None));
        let (broker, leases) =
            match (settings::broker_options(settings), settings::leases(settings, Role::Command)) {
                (Ok(broker), Ok(leases)) => (broker, leases),
                (broker, leases) => {
                    let errors = [broker.err(), leases.err()].into_iter().flatten().flatten();
                    errors.for_each(|error| complain(&format!("error: {error}")));
                    return Err(Exit::Usage);
                }
            };
        let gateway = settings::gateway(settings);
        if let (Err(errors), true) = (&gateway, purpose.needs_gateway()) {
            errors.iter().for_each(|error| complain(&format!("error: {error}")));
            return Err(Exit::Usage);
        }
        let topology = if purpose.acts() { broker.topology } else { Topology::None };
        // The delays are the workers' business.
        let broker = BrokerOptions { topology, delays: Vec::new(), ..broker };
        let session = Session::open(&broker).await.map_err(|error| {
            complain(&format!("error: the broker: {error}"));
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

    /// Disconnects.
    pub(super) async fn close(self) {
        self.desk.session.close().await;
        if let Some(keeper) = self.keeper {
            keeper.abort();
        }
    }
}

/// Says why work ended early.
fn ended(error: &DeskError) -> Exit {
    match error {
        DeskError::Interrupted => {
            complain("interrupted; every letter that was not told of is where it was")
        }
        error => complain(&format!("error: {error}")),
    }
    Exit::Failed
}
