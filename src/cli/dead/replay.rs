//! `capture-worker dead replay`.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{FilterArgs, Opened, Purpose, ended, letters};
use crate::{
    cli::{
        Exit, complain,
        desk::{can_ask, confirm, plain, who},
        has_failed, is_lost,
        json::Array,
        say, say_json, say_json_part,
        watch::Watch,
    },
    config::{RateLimit, Settings},
    dead_letters::{DeskError, Filter, Replays, Summary, Told},
    domain::{
        class::Class,
        evidence::Decision,
        letter::DeadLetter,
        money::{Currency, Money, major},
        replay::{Changes, Policy},
        settle::epoch_ms,
    },
};

#[derive(clap::Args)]
pub(in crate::cli) struct ReplayArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Ask the gateway what would happen, and print a plan; nothing is sent or changed
    #[arg(long)]
    dry_run: bool,
    /// Don't ask on a terminal
    #[arg(long)]
    yes: bool,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// In whose name; kept in the audit
    #[arg(long = "as", value_name = "NAME")]
    as_: Option<String>,
    /// At most so many letters in so long: 10/s, 600/m
    #[arg(long, value_name = "RATE")]
    rate: Option<RateLimit>,
    /// Send so many first, and go on only if all of them are captured within a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    canary: Option<u64>,
    /// Send at most so much of a currency, in its smallest unit; no other currency is sent then. May be repeated
    #[arg(long, value_name = "HKD=5000")]
    max_money: Vec<MaxMoney>,
    /// A lower amount, in the smallest unit; for one letter of class limit, named by --id, without
    /// goods. Unless its capture is not the final one, the rest of the authorization is given up
    #[arg(long, value_name = "N")]
    capture_value: Option<u64>,
    /// A new expiresAt: RFC 3339
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// `HKD=5000`.
#[derive(Clone, Copy, Debug)]
struct MaxMoney(Currency, u64);

impl FromStr for MaxMoney {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "must be a currency and an amount in its smallest unit such as HKD=5000, found `{text}`"
            )
        };
        let (currency, value) = text.split_once('=').ok_or_else(wrong)?;
        let currency = Currency::from_code(currency).map_err(|error| error.to_string())?;
        Ok(Self(currency, value.parse().map_err(|_| wrong())?))
    }
}

/// What came of all.
#[derive(Default)]
struct Tally {
    sent: u64,
    settled: u64,
    refused: u64,
    money: BTreeMap<Currency, u128>,
}

impl ReplayArgs {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let mut replays = match self.replays(settings) {
            Ok(replays) => replays,
            Err(exit) => return exit,
        };
        let Ok(watch) = Watch::start(true) else { return Exit::Failed };
        let purpose = if self.dry_run { Purpose::Plan } else { Purpose::Replay };
        let by = (who(self.as_.clone()), self.reason.clone());
        let opened = match Opened::open(settings, purpose, by, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let exit = match self.ask(&opened, &mut replays).await {
            Ok(true) => self.act(&opened, &replays).await,
            Ok(false) => {
                complain("nothing was replayed");
                Exit::Failed
            }
            Err(error) => ended(&error),
        };
        opened.close().await;
        exit
    }

    fn replays(&self, settings: &Settings) -> Result<Replays, Exit> {
        let filter = self.filter.names_letters()?;
        let usage = |error: &str| {
            complain(&format!("error: {error}"));
            Exit::Usage
        };
        if self.capture_value.is_some() && self.filter.id.len() != 1 {
            return Err(usage("--capture-value is for one letter: name it with --id"));
        }
        let expires_at = match &self.expires_at {
            None => None,
            Some(text) => match OffsetDateTime::parse(text, &Rfc3339) {
                Ok(at) if at > OffsetDateTime::now_utc() => Some(at),
                Ok(_) => return Err(usage("--expires-at has passed")),
                Err(_) => {
                    return Err(usage(
                        "--expires-at must be an RFC 3339 time such as 2026-11-30T18:00:00Z",
                    ));
                }
            },
        };
        let max_money: BTreeMap<_, _> = self.max_money.iter().map(|max| (max.0, max.1)).collect();
        if max_money.len() < self.max_money.len() {
            return Err(usage("--max-money names a currency twice"));
        }
        for (name, text) in [("--reason", &self.reason), ("--as", &self.as_)] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err(usage(&format!("{name} is empty")));
            }
        }
        let mut limit = self.filter.limit;
        let mut filter = filter;
        if self.capture_value.is_some() {
            // One letter: copies of it would each go with that amount.
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
            // Each letter is inquired about.
            every: self
                .rate
                .or(settings.gateway.rate_limit)
                .map_or(Duration::ZERO, |rate| rate.period / rate.calls.get()),
            canary: self.canary,
            max_money,
        })
    }

    /// On a terminal, says what is meant and asks; then no more than that is meant.
    async fn ask(&self, opened: &Opened, replays: &mut Replays) -> Result<bool, DeskError> {
        if self.dry_run || self.yes || !can_ask() {
            return Ok(true);
        }
        let counted = Counted::of(opened, &replays.filter, replays.limit).await?;
        let question = format!("Replay {}?", counted.words);
        replays.caps = Some(counted.letters);
        Ok(confirm(&question, &opened.desk.stop).await)
    }

    async fn act(&self, opened: &Opened, replays: &Replays) -> Exit {
        let mut tally = Tally::default();
        if self.json {
            say_json_part(&format!("{{\"dryRun\":{},\"letters\":", self.dry_run));
        }
        let mut array = self.json.then(Array::begin);
        let told = |letter: &DeadLetter, told: &Told| {
            tally.count(&told.decision);
            match &mut array {
                Some(array) => array.add(&document(letter, told)),
                None => say(&line(letter, told, self.dry_run)),
            }
            if self.dry_run && is_lost() {
                opened.desk.stop.cancel();
            }
        };
        let done = if self.dry_run {
            opened.desk.plan(replays, told).await
        } else {
            opened.desk.replay(replays, told).await
        };
        let error = done.as_ref().err().map(ToString::to_string);
        match array {
            Some(array) => {
                array.end();
                let Tally { sent, settled, refused, .. } = tally;
                say_json(&format!(
                    ",\"sent\":{sent},\"settled\":{settled},\"refused\":{refused},\"error\":{}}}",
                    json!(error)
                ));
            }
            None if tally.is_empty() && error.is_none() => say("no letters match"),
            None => say(&tally.words(self.dry_run)),
        }
        if !self.dry_run && has_failed() {
            complain(
                "the dead letters were acted on even so: `capture-worker audit` tells of each",
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

/// How many letters of each class an act is about, and of how much money.
pub(super) struct Counted {
    pub(super) letters: BTreeMap<Class, u64>,
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
        let (mut letters, mut parts) = (BTreeMap::new(), Vec::new());
        for Summary { class, letters: count, money, .. } in summaries {
            let sums = money.iter().map(|(currency, (sum, _))| {
                format!("{} {}", currency.code(), major(*currency, *sum))
            });
            let sums: Vec<_> = sums.collect();
            parts.push(format!("{count} of class {class} ({})", sums.join(", ")));
            letters.insert(class, count);
        }
        if parts.is_empty() {
            parts.push("no letters".into());
        }
        Ok(Self { letters, words: parts.join(", ") })
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
                if let Some(amount) = replay.amount {
                    *self.money.entry(amount.currency()).or_default() += u128::from(amount.value());
                }
            }
            Decision::Settle(_) => self.settled += 1,
            Decision::Refuse(_) => self.refused += 1,
        }
    }

    fn words(&self, dry_run: bool) -> String {
        let Self { sent, settled, refused, money } = self;
        let sums: Vec<String> = money
            .iter()
            .map(|(currency, sum)| format!("{} {}", currency.code(), major(*currency, *sum)))
            .collect();
        let sums = if sums.is_empty() { String::new() } else { format!(" ({})", sums.join(", ")) };
        if dry_run {
            format!(
                "would send {sent}{sums}, settle {settled} as captured, refuse {refused}; nothing was changed"
            )
        } else {
            format!("sent {sent}{sums}, settled {settled} as captured, refused {refused}")
        }
    }
}

fn line(letter: &DeadLetter, told: &Told, dry_run: bool) -> String {
    let amount = letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let id = letter.id().map_or_else(|| "-".to_owned(), plain);
    let would = if dry_run { "would be " } else { "" };
    let what = match &told.decision {
        Decision::Send(replay) => {
            let as_ = match (replay.policy, &replay.id) {
                (Policy::FreshId, Some(id)) => format!("as {id}"),
                (Policy::SameBytes, _) => "byte for byte".to_owned(),
                _ => "under the same id".to_owned(),
            };
            let lowered = replay.amount.filter(|amount| letter.amount() != Some(*amount));
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
            format!("refused: {}; instead: {}", plain(&refusal.reason), plain(&refusal.instead))
        }
    };
    let evidence = told.evidence.as_deref().map(plain);
    let is_fresh =
        matches!(&told.decision, Decision::Send(replay) if replay.policy == Policy::FreshId);
    let about = if is_fresh { "the old id" } else { "gateway" };
    let evidence = evidence.map_or_else(String::new, |evidence| format!(" [{about}: {evidence}]"));
    format!("{} {id} {amount}: {what}{evidence}", letter.class)
}

fn document(letter: &DeadLetter, told: &Told) -> Value {
    let now_ms = epoch_ms(OffsetDateTime::now_utc());
    let (decision, sent, refusal) = match &told.decision {
        Decision::Send(replay) => ("send", Some(replay), None),
        Decision::Settle(_) => ("settle", None, None),
        Decision::Refuse(refusal) => ("refuse", None, Some(refusal)),
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
        "letter": letters::document(letter, now_ms),
        "decision": decision,
        "sends": sends,
        "refusal": refusal.map(|refusal| &refusal.reason),
        "instead": refusal.map(|refusal| &refusal.instead),
        "evidence": told.evidence,
    })
}
