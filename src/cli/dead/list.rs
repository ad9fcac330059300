//! `capture-worker dead list`.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{FilterArgs, Opened, Purpose, ended, letters};
use crate::{
    cli::{
        Exit,
        desk::{Table, age, plain},
        is_lost,
        json::Array,
        say, say_json,
        watch::Watch,
    },
    config::Settings,
    dead_letters::{DeskError, Flow, Summary, Who, rfc3339},
    domain::{class::Class, money::major, replay::Policy, settle::epoch_ms},
};

/// Letters of a class that are listed if nothing else is said.
const LIMIT: u64 = 100;
/// Codes of a class that are named in its line.
const TOP_CODES: usize = 3;

#[derive(clap::Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: FilterArgs,
    /// Print one JSON document: an array of classes, or with --class of letters
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let lists_letters = !self.filter.class.is_empty();
        let Ok(watch) = Watch::start(lists_letters) else { return Exit::Failed };
        let nobody = (Who::default(), None);
        let opened = match Opened::open(settings, Purpose::Look, nobody, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let listed =
            if lists_letters { self.letters(&opened).await } else { self.classes(&opened).await };
        opened.close().await;
        match listed {
            Ok(()) => Exit::Done,
            Err(error) => ended(&error),
        }
    }

    async fn classes(&self, opened: &Opened) -> Result<(), DeskError> {
        let filter = self.filter.filter();
        let (summaries, walked) = opened.desk.summaries(&filter, self.filter.limit).await;
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        if walked.is_err() && self.json {
            // Half of a document would be taken for the whole.
            return walked.map(drop);
        }
        if self.json {
            let documents = summaries.iter().map(|summary| document(summary, now_ms));
            say_json(&Value::Array(documents.collect()));
        } else if summaries.is_empty() {
            say("no dead letters");
        } else {
            let mut table = Table::new([
                "CLASS",
                "LETTERS",
                "OLDEST",
                "NEWEST",
                "MONEY",
                "TOP CODES",
                "REPLAY; WHAT TO DO",
            ]);
            summaries.iter().for_each(|summary| table.add(row(summary, now_ms)));
            table.flush();
        }
        if matches!(walked, Ok(Flow::Stop)) && !self.json {
            say("only so many letters were looked at; there are more");
        }
        walked.map(drop)
    }

    async fn letters(&self, opened: &Opened) -> Result<(), DeskError> {
        let filter = self.filter.filter();
        let limit = if self.filter.all { None } else { Some(self.filter.limit.unwrap_or(LIMIT)) };
        let (mut listed, mut more) = (0, false);
        let mut array = self.json.then(Array::begin);
        let mut table = letters::table();
        let mut walked = Ok(Flow::Keep);
        for class in filter.classes() {
            let visit = async |_: &_, letter| {
                if limit == Some(listed) {
                    more = true;
                    return Ok(Flow::Stop);
                }
                listed += 1;
                let now_ms = epoch_ms(OffsetDateTime::now_utc());
                match &mut array {
                    Some(array) => array.add(&letters::document(&letter, now_ms)),
                    None => table.add(letters::row(&letter, now_ms)),
                }
                Ok(if is_lost() { Flow::Stop } else { Flow::Keep })
            };
            walked = opened.desk.walk(class, &filter, visit).await;
            if !matches!(walked, Ok(Flow::Keep)) {
                break;
            }
        }
        match array {
            Some(array) => array.end(),
            None => {
                table.flush();
                let what = match (more, listed) {
                    (true, _) => "shown; there are more: --limit N, or --all",
                    (false, 1) => "letter",
                    (false, _) => "letters",
                };
                say(&format!("{listed} {what}"));
            }
        }
        walked.map(drop)
    }
}

/// Sums by currency in the major unit.
fn money(summary: &Summary) -> Vec<String> {
    let sums = summary.money.iter();
    sums.map(|(currency, (sum, _))| format!("{} {}", currency.code(), major(*currency, *sum)))
        .collect()
}

/// How its letters may be replayed; of class `access` some may be signed and some not.
fn policies(summary: &Summary) -> String {
    let words = |(policy, count): (&Policy, &u64)| match (summary.class, summary.policies.len()) {
        (Class::Limit, _) => "fresh id, amount may go down".to_owned(),
        (_, 1) => policy.words().to_owned(),
        _ => format!("{count} {}", policy.words()),
    };
    summary.policies.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn row(summary: &Summary, now_ms: i64) -> [String; 7] {
    let ages = summary.dead_at_ms.map(|(first, last)| (age(now_ms - first), age(now_ms - last)));
    let (oldest, newest) = ages.unwrap_or_else(|| ("-".into(), "-".into()));
    let codes = summary.top_codes();
    let reasons = summary.broker_reasons.iter();
    let mut named: Vec<String> =
        reasons.map(|(reason, count)| format!("by the broker: {reason} {count}")).collect();
    named.extend(
        codes.iter().take(TOP_CODES).map(|(code, count)| format!("{} {count}", plain(code))),
    );
    if codes.len() > TOP_CODES {
        named.push(format!("{} more", codes.len() - TOP_CODES));
    }
    let or_none = |texts: Vec<String>| if texts.is_empty() { "-".into() } else { texts.join(", ") };
    let mut amounts = money(summary);
    if summary.without_amount > 0 {
        amounts.push(format!("{} without amount", summary.without_amount));
    }
    let todo = format!("{}; {}", policies(summary), summary.advice.join("; "));
    [
        summary.class.name().to_owned(),
        summary.letters.to_string(),
        oldest,
        newest,
        or_none(amounts),
        or_none(named),
        todo,
    ]
}

fn document(summary: &Summary, now_ms: i64) -> Value {
    let money: Map<String, Value> = summary
        .money
        .iter()
        .map(|(currency, (sum, _))| (currency.code().to_owned(), json!(sum.to_string())))
        .collect();
    let codes: Map<String, Value> = summary
        .top_codes()
        .into_iter()
        .map(|(code, count)| (code.to_owned(), json!(count)))
        .collect();
    let replay: Map<String, Value> = summary
        .policies
        .iter()
        .filter_map(|(policy, count)| {
            let name = serde_json::to_value(policy).ok()?;
            Some((name.as_str()?.to_owned(), json!(count)))
        })
        .collect();
    let at = |pick: fn((i64, i64)) -> i64| summary.dead_at_ms.map(pick);
    json!({
        "class": summary.class,
        "letters": summary.letters,
        "oldestDeadAt": at(|ages| ages.0).and_then(rfc3339),
        "newestDeadAt": at(|ages| ages.1).and_then(rfc3339),
        "oldestAgeSeconds": at(|ages| ages.0).map(|ms| (now_ms - ms).max(0) / 1000),
        "newestAgeSeconds": at(|ages| ages.1).map(|ms| (now_ms - ms).max(0) / 1000),
        "money": money,
        "withoutAmount": summary.without_amount,
        "codes": codes,
        "brokerReasons": summary.broker_reasons,
        "replay": replay,
        "advice": summary.advice.join("; "),
    })
}
