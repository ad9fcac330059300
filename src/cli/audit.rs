//! `capture-worker audit`: prints the audit records of operators.

use std::{collections::VecDeque, path::Path, str::FromStr, time::Duration};

use serde_json::Value;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{
    Exit,
    desk::plain,
    json::Array,
    name_list::{NameList, all},
    print_error,
    settings::{self, Service},
    table::TextTable,
    watch::Watch,
};
use crate::{
    broker::{BrokerOptions, BrowseError, BrowsedQueue, Browser, Session, TopologyMode},
    dead_letters::{Action, Record},
    domain::{capture::class::Class, duration, time::parse_rfc3339},
    telemetry,
};

/// How many records are printed without `--limit` and `--all`.
const LIMIT: usize = 100;

const EXAMPLES: &str = "\
Examples:
  capture-worker audit --newer-than 1d
  capture-worker audit --action discard --class in_doubt,conflict
  capture-worker audit --id shipment-1001 --json";

/// Print who did what to which dead letters, when and why
///
/// The newest record is printed last. Reading changes nothing.
///
/// Exit codes: 0: the records were printed. 1: the broker could not be used, or the command was
/// interrupted. 64: bad usage or settings.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Audit {
    /// Only records about dead letters of these classes, separated by commas
    #[arg(long, value_name = "CLASS")]
    class: Vec<NameList<Class>>,
    /// Only records of these actions: replay, settle, discard, refuse, fail; separated by commas
    #[arg(long, value_name = "ACTION")]
    action: Vec<NameList<Action>>,
    /// Only records about this captureRequestId, whether it was replayed or is the fresh id of a
    /// replay. May be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only records about this paymentId. May be repeated
    #[arg(long, value_name = "ID")]
    payment: Vec<String>,
    /// Only records whose user, host or `--as` name contains this text
    #[arg(long, value_name = "TEXT")]
    who: Option<String>,
    /// Only records older than this age, such as 90s, 15m, 2h or 3d
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only records newer than this age
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    newer_than: Option<Duration>,
    /// Print at most this many records, the newest ones; 100 by default
    #[arg(long, value_name = "N", conflicts_with = "all")]
    limit: Option<usize>,
    /// Print all records that match, not only the newest ones
    #[arg(long)]
    all: bool,
    /// Print one JSON document: an array of records
    #[arg(long)]
    json: bool,
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(Value::String(text.to_owned()))
            .map_err(|_| "must be one of replay, settle, discard, refuse, fail".to_owned())
    }
}

impl Audit {
    pub(super) async fn run(self, config: Option<&Path>) -> Exit {
        let broker = settings::load(config, &[Service::Broker]).and_then(|settings| {
            // An error means that logging was started already, which is no problem here.
            drop(telemetry::start(settings.log.format, "capture_worker=warn", None));
            settings::broker_options(&settings).map_err(|errors| {
                errors.iter().for_each(|error| print_error(&format!("error: {error}")));
                Exit::Usage
            })
        });
        let broker = match broker {
            Ok(broker) => {
                BrokerOptions { topology: TopologyMode::None, delays: Vec::new(), ..broker }
            }
            Err(exit) => return exit,
        };
        let watch = match Watch::start(true) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let session = match Session::open(&broker).await {
            Ok(session) => session,
            Err(error) => {
                print_error(&format!("error: cannot use the broker: {error}"));
                return Exit::Failed;
            }
        };
        let printed = self.print(&session, &watch.stop()).await;
        session.close().await;
        match printed {
            Ok(true) => Exit::Done,
            Ok(false) => {
                print_error("interrupted: no record was printed");
                Exit::Failed
            }
            Err(error) => {
                print_error(&format!("error: {error}"));
                Exit::Failed
            }
        }
    }

    /// Prints the records. False if it was interrupted.
    async fn print(
        &self,
        session: &Session,
        stop: &CancellationToken,
    ) -> Result<bool, BrowseError> {
        let limit = if self.all { usize::MAX } else { self.limit.unwrap_or(LIMIT) };
        let (mut newest, mut older) = (VecDeque::new(), 0_u64);
        let mut unreadable = 0_u64;
        let waits = || {
            print_error(
                "another command is reading the audit queue: waiting for it to end (Ctrl-C stops \
                 waiting)",
            );
        };
        if let Some(mut look) = Browser::open(session, BrowsedQueue::Audit, waits).await? {
            look.may_republish(session).await?;
            let now = OffsetDateTime::now_utc();
            while let (false, Some(found)) = (stop.is_cancelled(), look.next().await?) {
                match serde_json::from_slice::<Record>(&found.body) {
                    Ok(record) if self.takes(&record, now) && limit > 0 => {
                        if newest.len() == limit {
                            newest.pop_front();
                            older += 1;
                        }
                        newest.push_back(record);
                    }
                    Ok(_) => {}
                    Err(_) => unreadable += 1,
                }
            }
            look.close().await?;
        }
        if stop.is_cancelled() {
            return Ok(false);
        }
        if self.json {
            let mut array = Array::begin();
            newest.iter().flat_map(serde_json::to_value).for_each(|record| array.add(&record));
            array.end();
        } else if !newest.is_empty() {
            let mut table = TextTable::new([
                "TIME",
                "WHO",
                "ACTION",
                "CLASS",
                "CAPTURE REQUEST ID",
                "AMOUNT",
                "DETAILS",
            ]);
            newest.iter().for_each(|record| table.add(row(record)));
            table.flush();
        }
        if older > 0 {
            print_error(&format!("{older} older records match too: use --limit N or --all"));
        }
        if unreadable > 0 {
            print_error(&format!(
                "warning: {unreadable} messages in the audit queue are not audit records: skipped"
            ));
        }
        Ok(true)
    }

    fn takes(&self, record: &Record, now: OffsetDateTime) -> bool {
        let dead_letter = &record.dead_letter;
        let ids = [
            dead_letter.capture_request_id.as_ref(),
            record.to.as_ref().and_then(|to| to.capture_request_id.as_ref()),
        ];
        let age = parse_rfc3339(&record.at).map(|at| now - at);
        let is_older = |limit: Duration| age.is_some_and(|age| age > limit);
        let names = [Some(record.who.as_str()), record.as_.as_deref()];
        let (classes, actions) = (all(&self.class), all(&self.action));
        (classes.is_empty() || classes.contains(&dead_letter.class))
            && (actions.is_empty() || actions.contains(&record.action))
            && (self.id.is_empty() || ids.into_iter().flatten().any(|id| self.id.contains(id)))
            && (self.payment.is_empty()
                || dead_letter.payment_id.as_ref().is_some_and(|id| self.payment.contains(id)))
            && self.who.as_ref().is_none_or(|who| {
                names.into_iter().flatten().any(|name| name.contains(who.as_str()))
            })
            && self.older_than.is_none_or(is_older)
            && self.newer_than.is_none_or(|limit| !is_older(limit))
    }
}

/// An audit record as a row of the table.
fn row(record: &Record) -> [String; 7] {
    let dead_letter = &record.dead_letter;
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    let amount =
        dead_letter.capture_amount.map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let as_ = record.as_.as_deref().map(|as_| format!(" as {}", plain(as_))).unwrap_or_default();
    let mut details = Vec::new();
    if let Some(to) = &record.to {
        let id = or_none(to.capture_request_id.as_deref());
        let lowered = to.capture_amount.filter(|sent| Some(*sent) != dead_letter.capture_amount);
        let lowered = lowered.map_or_else(String::new, |sent| format!(", {sent}"));
        details.push(format!("-> {id} ({}{lowered})", to.policy));
    }
    for (name, text) in
        [("refused", &record.refusal), ("gateway", &record.evidence), ("reason", &record.reason)]
    {
        details.extend(text.as_ref().map(|text| format!("{name}: {}", plain(text))));
    }
    [
        record.at.clone(),
        format!("{}{as_}", plain(&record.who)),
        record.action.name().to_owned(),
        dead_letter.class.to_string(),
        or_none(dead_letter.capture_request_id.as_deref()),
        amount,
        if details.is_empty() { "-".to_owned() } else { details.join("; ") },
    ]
}
