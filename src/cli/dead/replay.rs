//! `capture-worker dead replay`: plans a replay, or confirms it with the operator and runs it.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{FilterArgs, Opened, Purpose, ended, rows};
use crate::{
    cli::{
        Exit,
        desk::{can_ask, confirm, plain, who},
        has_failed, is_lost,
        json::Array,
        print_error, print_json, print_json_part, print_line,
        watch::Watch,
    },
    config::{RateLimit, Settings},
    dead_letters::{Captures, DeskError, Filter, RefusalText, ReplayReport, Replays},
    domain::{
        capture::class::Class,
        money::{Currency, Money},
        replay::{Changes, ReplayPolicy, dead_letter::DeadLetter, decision::Decision},
        time::{epoch_ms, parse_rfc3339},
    },
};

#[derive(clap::Args)]
pub(in crate::cli) struct ReplayArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Ask the gateway and print what would happen. Nothing is sent or changed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation on a terminal
    #[arg(long)]
    yes: bool,
    /// Why the dead letters are replayed; recorded in the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// On whose behalf; recorded in the audit
    #[arg(long = "as", value_name = "NAME")]
    as_: Option<String>,
    /// Maximum rate, such as 10/s or 600/m. By default the rate of `gateway.rate_limit`, if it is
    /// set
    #[arg(long, value_name = "RATE")]
    rate: Option<RateLimit>,
    /// Send this many first, and continue only if all of them are captured within 60 seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    canary: Option<u64>,
    /// Send at most this much of a currency, in its smallest unit. Copies of one capture count
    /// once. Other currencies are refused then. May be repeated
    #[arg(long, value_name = "HKD=5000")]
    max_money: Vec<MaxMoney>,
    /// Capture this lower amount, in the smallest unit. Only for one dead letter of class limit,
    /// named by --id, whose job has no goods. Unless its captureType is `NON_FINAL`, the gateway
    /// gives up the rest of the authorization
    #[arg(long, value_name = "N")]
    capture_value: Option<u64>,
    /// Replace expiresAt by this RFC 3339 time, such as 2026-11-30T18:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Print one JSON document with each dead letter and what was done
    #[arg(long)]
    json: bool,
}

/// A currency and an amount in its smallest unit, written `HKD=5000`.
#[derive(Clone, Copy, Debug)]
struct MaxMoney(Currency, u64);

impl FromStr for MaxMoney {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "must be a currency and an amount in its smallest unit such as HKD=5000, found \
                 `{text}`"
            )
        };
        let (currency, value) = text.split_once('=').ok_or_else(wrong)?;
        let currency = Currency::from_code(currency).map_err(|error| error.to_string())?;
        Ok(Self(currency, value.parse().map_err(|_| wrong())?))
    }
}

/// How many dead letters were sent, settled and refused, and the captures that were sent.
#[derive(Default)]
struct Tally {
    sent: u64,
    settled: u64,
    refused: u64,
    captures: Captures,
}

impl ReplayArgs {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let mut replays = match self.replays(settings) {
            Ok(replays) => replays,
            Err(exit) => return exit,
        };
        let watch = match Watch::start(true) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let purpose = if self.dry_run { Purpose::Plan } else { Purpose::Replay };
        let by = (who(self.as_.clone()), self.reason.clone());
        let opened = match Opened::open(settings, purpose, by, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let exit = match self.ask(&opened, &mut replays).await {
            Ok(true) => self.act(&opened, &replays).await,
            Ok(false) => {
                print_error("nothing was replayed");
                Exit::Failed
            }
            Err(error) => ended(&error),
        };
        opened.close().await;
        exit
    }

    fn replays(&self, settings: &Settings) -> Result<Replays, Exit> {
        let filter = self.filter.names_dead_letters()?;
        let usage = |error: &str| {
            print_error(&format!("error: {error}"));
            Exit::Usage
        };
        if self.capture_value.is_some() && self.filter.id.len() != 1 {
            return Err(usage("--capture-value changes one dead letter: name it with one --id"));
        }
        let expires_at = match &self.expires_at {
            None => None,
            Some(text) => match parse_rfc3339(text) {
                Some(at) if at > OffsetDateTime::now_utc() => Some(at),
                Some(_) => {
                    return Err(usage(&format!(
                        "--expires-at must be in the future, found {text}"
                    )));
                }
                None => {
                    return Err(usage(&format!(
                        "--expires-at must be an RFC 3339 time such as 2026-11-30T18:00:00Z, \
                         found `{text}`"
                    )));
                }
            },
        };
        let max_money: BTreeMap<_, _> = self.max_money.iter().map(|max| (max.0, max.1)).collect();
        if max_money.len() < self.max_money.len() {
            return Err(usage("--max-money names a currency twice: give one amount for each"));
        }
        for (name, text) in [("--reason", &self.reason), ("--as", &self.as_)] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err(usage(&format!("{name} is empty: write a text or leave it out")));
            }
        }
        let mut limit = self.filter.limit;
        let mut filter = filter;
        if self.capture_value.is_some() {
            // Only one: each copy of the dead letter would be sent with that amount.
            limit = Some(1);
            if filter.classes.is_empty() {
                filter.classes = vec![Class::Limit];
            }
        }
        Ok(Replays {
            filter,
            changes: Changes { capture_value: self.capture_value, expires_at },
            limit,
            caps: None,
            // Each dead letter costs one inquiry, so the limit of calls to the gateway applies.
            every: self
                .rate
                .or(settings.gateway.rate_limit)
                .map_or(Duration::ZERO, |rate| rate.period / rate.calls.get()),
            canary: self.canary,
            max_money,
        })
    }

    /// On a terminal, asks for confirmation of how many dead letters and how much money. Then caps
    /// the replay at what was confirmed, because more can arrive in the meantime.
    async fn ask(&self, opened: &Opened, replays: &mut Replays) -> Result<bool, DeskError> {
        if self.dry_run || self.yes || !can_ask() {
            return Ok(true);
        }
        let counted = Counted::of(opened, &replays.filter, replays.limit).await?;
        let question = format!("Replay {}?", counted.words);
        replays.caps = Some(counted.dead_letters);
        Ok(confirm(&question, &opened.desk.stop).await)
    }

    async fn act(&self, opened: &Opened, replays: &Replays) -> Exit {
        let mut tally = Tally::default();
        if self.json {
            print_json_part(&format!("{{\"dryRun\":{},\"letters\":", self.dry_run));
        }
        let mut array = self.json.then(Array::begin);
        let report = |dead_letter: &DeadLetter, report: &ReplayReport| {
            tally.count(&report.decision);
            match &mut array {
                Some(array) => array.add(&document(dead_letter, report)),
                None => print_line(&line(dead_letter, report, self.dry_run)),
            }
            if self.dry_run && is_lost() {
                opened.desk.stop.cancel();
            }
        };
        let done = if self.dry_run {
            opened.desk.plan(replays, report).await
        } else {
            opened.desk.replay(replays, report).await
        };
        let error = done.as_ref().err().map(ToString::to_string);
        match array {
            Some(array) => {
                array.end();
                let Tally { sent, settled, refused, captures } = &tally;
                print_json(&format!(
                    ",\"sent\":{sent},\"settled\":{settled},\"refused\":{refused},\
                     \"distinctCaptures\":{},\"error\":{}}}",
                    captures.distinct(),
                    json!(error)
                ));
            }
            None if tally.is_empty() && error.is_none() => print_line("no dead letters match"),
            None => print_line(&tally.words(self.dry_run)),
        }
        if !self.dry_run && has_failed() {
            print_error(
                "the output is incomplete, but the command went on: `capture-worker audit` lists \
                 what was done",
            );
        }
        match done {
            Err(_) if self.dry_run && is_lost() => Exit::Done,
            Err(error) => ended(&error),
            Ok(()) if tally.refused > 0 => Exit::Failed,
            Ok(()) => Exit::Done,
        }
    }
}

/// How many dead letters of each class a command would act on, and their money in words.
pub(super) struct Counted {
    pub(super) dead_letters: BTreeMap<Class, u64>,
    pub(super) words: String,
}

impl Counted {
    pub(super) async fn of(
        opened: &Opened,
        filter: &Filter,
        limit: Option<u64>,
    ) -> Result<Self, DeskError> {
        let (summaries, walked) = opened.desk.summaries(filter, limit).await;
        walked?;
        let words = |count: u64, of: &str, captures: &Captures| {
            let noun = if count == 1 { "dead letter" } else { "dead letters" };
            format!("{count} {noun}{of} ({})", rows::captures_in_words(captures))
        };
        let classes = summaries.classes.iter().map(|summary| {
            words(summary.dead_letters, &format!(" of class {}", summary.class), &summary.captures)
        });
        let classes = classes.collect::<Vec<_>>().join(", ");
        let words = match summaries.classes.len() {
            0 => "no dead letters".to_owned(),
            1 => classes,
            _ => format!("{}: {classes}", words(summaries.dead_letters(), "", &summaries.captures)),
        };
        let dead_letters =
            summaries.classes.iter().map(|summary| (summary.class, summary.dead_letters));
        Ok(Self { dead_letters: dead_letters.collect(), words })
    }
}

impl Tally {
    const fn is_empty(&self) -> bool {
        self.sent + self.settled + self.refused == 0
    }

    fn count(&mut self, decision: &Decision) {
        match decision {
            Decision::Send(replay) => {
                self.sent += 1;
                self.captures.add(replay.id.as_deref(), replay.amount);
            }
            Decision::Settle(_) => self.settled += 1,
            Decision::Refuse(_) => self.refused += 1,
        }
    }

    fn words(&self, dry_run: bool) -> String {
        let Self { sent, settled, refused, captures } = self;
        let sums = match sent {
            0 => String::new(),
            _ => format!(" ({})", rows::captures_in_words(captures)),
        };
        if dry_run {
            format!(
                "would send {sent}{sums}, settle {settled} as captured, refuse {refused}; nothing \
                 was changed"
            )
        } else {
            format!("sent {sent}{sums}, settled {settled} as captured, refused {refused}")
        }
    }
}

fn line(dead_letter: &DeadLetter, report: &ReplayReport, dry_run: bool) -> String {
    let amount = dead_letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let id = dead_letter.id().map_or_else(|| "-".to_owned(), plain);
    let would = if dry_run { "would be " } else { "" };
    let what = match &report.decision {
        Decision::Send(replay) => {
            let as_ = match (replay.policy, &replay.id) {
                (ReplayPolicy::FreshId, Some(id)) => format!("as {id}"),
                (ReplayPolicy::SameBytes, _) => "byte for byte".to_owned(),
                _ => "under the same id".to_owned(),
            };
            let lowered = replay.amount.filter(|amount| dead_letter.amount() != Some(*amount));
            let lowered = lowered.map_or_else(String::new, |amount: Money| format!(", {amount}"));
            let rest = if replay.gives_up_rest {
                ", and the rest of the authorization is given up (captureType is FINAL or absent)"
            } else {
                ""
            };
            format!("{would}sent {as_}{lowered}{rest}")
        }
        Decision::Settle(_) => format!("{would}settled as captured"),
        Decision::Refuse(refusal) => {
            let RefusalText { reason, instead } = refusal.into();
            format!("refused: {}; instead: {}", plain(&reason), plain(&instead))
        }
    };
    let evidence = report.evidence.as_deref().map(plain);
    let policy = match &report.decision {
        Decision::Send(replay) => Some(replay.policy),
        Decision::Settle(_) | Decision::Refuse(_) => None,
    };
    let is_fresh = policy == Some(ReplayPolicy::FreshId);
    let about = if is_fresh { "the old id" } else { "gateway" };
    let evidence = evidence.map_or_else(String::new, |evidence| format!(" [{about}: {evidence}]"));
    format!("{} {id} {amount}: {what}{evidence}", dead_letter.class)
}

fn document(dead_letter: &DeadLetter, report: &ReplayReport) -> Value {
    let now_ms = epoch_ms(OffsetDateTime::now_utc());
    let (decision, sent, refusal) = match &report.decision {
        Decision::Send(replay) => ("send", Some(replay), None),
        Decision::Settle(_) => ("settle", None, None),
        Decision::Refuse(refusal) => ("refuse", None, Some(RefusalText::from(refusal))),
    };
    let sends = sent.map(|replay| {
        json!({
            "captureRequestId": replay.id,
            "captureAmount": replay.amount,
            "policy": replay.policy,
            "givesUpRest": replay.gives_up_rest,
        })
    });
    json!({
        "letter": rows::document(dead_letter, now_ms),
        "decision": decision,
        "sends": sends,
        "refusal": refusal.as_ref().map(|refusal| &refusal.reason),
        "instead": refusal.as_ref().map(|refusal| &refusal.instead),
        "evidence": report.evidence,
    })
}
