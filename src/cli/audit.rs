//! `capture-worker audit`.

use std::{collections::VecDeque, path::Path, str::FromStr, time::Duration};

use serde_json::Value;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{
    Exit, complain,
    desk::plain,
    json::Array,
    name_list::{NameList, all},
    say,
    settings::{self, Service},
    watch::Watch,
};
use crate::{
    broker::{BrokerOptions, Browsed, Look, LookError, Session, Topology},
    dead_letters::{Action, Record},
    domain::{class::Class, duration},
    telemetry,
};

/// Records that are printed if nothing else is said.
const LIMIT: usize = 100;

/// Who did what to which dead letters, when and why; the newest last
#[derive(clap::Args)]
pub(super) struct Audit {
    /// Only records about letters of these classes
    #[arg(long, value_name = "CLASS")]
    class: Vec<NameList<Class>>,
    /// Only records of these actions: replay, settle, discard, refuse, fail
    #[arg(long, value_name = "ACTION")]
    action: Vec<NameList<Action>>,
    /// Only records about this captureRequestId, before or after a replay; may be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Only records about this paymentId; may be repeated
    #[arg(long, value_name = "ID")]
    payment: Vec<String>,
    /// Only records of whose user or name this is a part
    #[arg(long, value_name = "TEXT")]
    who: Option<String>,
    /// Only records older than this: 90s, 15m, 2h, 3d
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Only records newer than this
    #[arg(long, value_name = "AGE", value_parser = duration::parse)]
    newer_than: Option<Duration>,
    /// The newest so many; 100 if nothing else is said
    #[arg(long, value_name = "N", conflicts_with = "all")]
    limit: Option<usize>,
    /// All records
    #[arg(long)]
    all: bool,
    /// Print one JSON document: an array
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
            // An error says that logs go somewhere already.
            drop(telemetry::start(settings.log.format, "capture_worker=warn", None));
            settings::broker_options(&settings).map_err(|errors| {
                errors.iter().for_each(|error| complain(&format!("error: {error}")));
                Exit::Usage
            })
        });
        let broker = match broker {
            Ok(broker) => BrokerOptions { topology: Topology::None, delays: Vec::new(), ..broker },
            Err(exit) => return exit,
        };
        let Ok(watch) = Watch::start(true) else { return Exit::Failed };
        let session = match Session::open(&broker).await {
            Ok(session) => session,
            Err(error) => {
                complain(&format!("error: the broker: {error}"));
                return Exit::Failed;
            }
        };
        let printed = self.print(&session, &watch.stop()).await;
        session.close().await;
        match printed {
            Ok(true) => Exit::Done,
            Ok(false) => {
                complain("interrupted");
                Exit::Failed
            }
            Err(error) => {
                complain(&format!("error: {error}"));
                Exit::Failed
            }
        }
    }

    /// Whether it came to its end.
    async fn print(&self, session: &Session, stop: &CancellationToken) -> Result<bool, LookError> {
        let limit = if self.all { usize::MAX } else { self.limit.unwrap_or(LIMIT) };
        let (mut newest, mut older) = (VecDeque::new(), 0_u64);
        let mut unreadable = 0_u64;
        let waits = || complain("somebody else looks at the audit: waiting");
        if let Some(mut look) = Look::open(session, Browsed::Audit, waits).await? {
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
        } else {
            newest.iter().for_each(|record| say(&line(record)));
        }
        if older > 0 {
            complain(&format!("{older} older records match too: --limit N, or --all"));
        }
        if unreadable > 0 {
            complain(&format!("{unreadable} messages in the audit's queue are no records"));
        }
        Ok(true)
    }

    fn takes(&self, record: &Record, now: OffsetDateTime) -> bool {
        use time::format_description::well_known::Rfc3339;
        let letter = &record.letter;
        let ids = [
            letter.capture_request_id.as_ref(),
            record.to.as_ref().and_then(|to| to.capture_request_id.as_ref()),
        ];
        let age = OffsetDateTime::parse(&record.at, &Rfc3339).ok().map(|at| now - at);
        let is_older = |limit: Duration| age.is_some_and(|age| age > limit);
        let names = [Some(record.who.as_str()), record.as_.as_deref()];
        let (classes, actions) = (all(&self.class), all(&self.action));
        (classes.is_empty() || classes.contains(&letter.class))
            && (actions.is_empty() || actions.contains(&record.action))
            && (self.id.is_empty() || ids.into_iter().flatten().any(|id| self.id.contains(id)))
            && (self.payment.is_empty()
                || letter.payment_id.as_ref().is_some_and(|id| self.payment.contains(id)))
            && self.who.as_ref().is_none_or(|who| {
                names.into_iter().flatten().any(|name| name.contains(who.as_str()))
            })
            && self.older_than.is_none_or(is_older)
            && self.newer_than.is_none_or(|limit| !is_older(limit))
    }
}

fn line(record: &Record) -> String {
    let letter = &record.letter;
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    let amount = letter.capture_amount.map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let mut line = format!(
        "{} {}{} {} {} {} {amount}",
        record.at,
        plain(&record.who),
        record.as_.as_deref().map(|as_| format!(" as {}", plain(as_))).unwrap_or_default(),
        record.action.name(),
        letter.class,
        or_none(letter.capture_request_id.as_deref()),
    );
    if let Some(to) = &record.to {
        let id = or_none(to.capture_request_id.as_deref());
        let lowered = to.capture_amount.filter(|sent| Some(*sent) != letter.capture_amount);
        let lowered = lowered.map_or_else(String::new, |sent| format!(", {sent}"));
        line.push_str(&format!(" -> {id} ({}{lowered})", to.policy));
    }
    for (name, text) in
        [("refused", &record.refusal), ("gateway", &record.evidence), ("reason", &record.reason)]
    {
        if let Some(text) = text {
            line.push_str(&format!("; {name}: {}", plain(text)));
        }
    }
    line
}
