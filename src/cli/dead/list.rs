//! `capture-worker dead list`: prints classes of dead letters, or the dead letters of a class.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{FilterArgs, Opened, Purpose, ended, rows};
use crate::{
    cli::{
        Exit,
        desk::{age, plain},
        is_lost,
        json::Array,
        print_json, print_line,
        table::TextTable,
        watch::Watch,
    },
    config::Settings,
    dead_letters::{Captures, DeskError, Flow, Summaries, Summary, Who},
    domain::{
        capture::class::Class,
        replay::ReplayPolicy,
        time::{epoch_ms, rfc3339_of_ms},
    },
};

/// How many dead letters are listed without `--limit` and `--all`.
const LIMIT: u64 = 100;
/// How many of the most frequent codes are named in the row of a class.
const TOP_CODES: usize = 3;

#[derive(clap::Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: FilterArgs,
    /// Print one JSON document: an array of classes or, with --class, of dead letters
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let lists_dead_letters = !self.filter.class.is_empty();
        let watch = match Watch::start(lists_dead_letters) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let nobody = (Who::default(), None);
        let opened = match Opened::open(settings, Purpose::Look, nobody, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let listed = if lists_dead_letters {
            self.dead_letters(&opened).await
        } else {
            self.classes(&opened).await
        };
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
            // Nothing is printed: a part of the document would look like all of it.
            return walked.map(drop);
        }
        if self.json {
            let documents = summaries.classes.iter().map(|summary| document(summary, now_ms));
            print_json(&Value::Array(documents.collect()));
        } else if summaries.classes.is_empty() {
            print_line("no dead letters");
        } else {
            let mut table = TextTable::new([
                "CLASS",
                "DEAD LETTERS",
                "DISTINCT CAPTURES",
                "OLDEST",
                "NEWEST",
                "MONEY",
                "TOP CODES",
                "REPLAY; WHAT TO DO",
            ]);
            summaries.classes.iter().for_each(|summary| table.add(row(summary, now_ms)));
            if summaries.classes.len() > 1 {
                table.add(total(&summaries, now_ms));
            }
            table.flush();
        }
        if matches!(walked, Ok(Flow::Stop)) && !self.json {
            print_line("stopped at --limit: more dead letters match");
        }
        walked.map(drop)
    }

    async fn dead_letters(&self, opened: &Opened) -> Result<(), DeskError> {
        let filter = self.filter.filter();
        let limit = if self.filter.all { None } else { Some(self.filter.limit.unwrap_or(LIMIT)) };
        let (mut listed, mut more) = (0, false);
        let mut array = self.json.then(Array::begin);
        let mut table = rows::table();
        let mut walked = Ok(Flow::Keep);
        for class in filter.classes() {
            let visit = async |_: &_, dead_letter| {
                if limit == Some(listed) {
                    more = true;
                    return Ok(Flow::Stop);
                }
                listed += 1;
                let now_ms = epoch_ms(OffsetDateTime::now_utc());
                match &mut array {
                    Some(array) => array.add(&rows::document(&dead_letter, now_ms)),
                    None => table.add(rows::row(&dead_letter, now_ms)),
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
                    (true, _) => "printed; more dead letters match: use --limit N or --all",
                    (false, 1) => "dead letter",
                    (false, _) => "dead letters",
                };
                print_line(&format!("{listed} {what}"));
            }
        }
        walked.map(drop)
    }
}

/// How the dead letters of a class may be replayed. Class `access` can have two policies: one for
/// signed verdicts and one for unsigned ones.
fn policies(summary: &Summary) -> String {
    let words =
        |(policy, count): (&ReplayPolicy, &u64)| match (summary.class, summary.policies.len()) {
            (Class::Limit, _) => "fresh id, amount may go down".to_owned(),
            (_, 1) => policy.words().to_owned(),
            _ => format!("{count} {}", policy.words()),
        };
    summary.policies.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn or_none(texts: &[String]) -> String {
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

/// How long ago the oldest and the newest were dead-lettered.
fn ages(dead_at_ms: Option<(i64, i64)>, now_ms: i64) -> (String, String) {
    let ages = dead_at_ms.map(|(first, last)| (age(now_ms - first), age(now_ms - last)));
    ages.unwrap_or_else(|| ("-".into(), "-".into()))
}

fn money(captures: &Captures, without_amount: u64) -> String {
    let mut amounts = rows::sums(captures);
    if without_amount > 0 {
        amounts.push(format!("{without_amount} without amount"));
    }
    or_none(&amounts)
}

/// The last row: all classes. A capture with copies in two classes counts once here, so it can be
/// less than the sum of the rows above.
fn total(summaries: &Summaries, now_ms: i64) -> [String; 8] {
    let (oldest, newest) = ages(summaries.dead_at_ms(), now_ms);
    [
        "total".to_owned(),
        summaries.dead_letters().to_string(),
        summaries.captures.distinct().to_string(),
        oldest,
        newest,
        money(&summaries.captures, summaries.without_amount()),
        "-".to_owned(),
        "-".to_owned(),
    ]
}

fn row(summary: &Summary, now_ms: i64) -> [String; 8] {
    let (oldest, newest) = ages(summary.dead_at_ms, now_ms);
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
    let todo = format!("{}; {}", policies(summary), summary.advice.join("; "));
    [
        summary.class.name().to_owned(),
        summary.dead_letters.to_string(),
        summary.captures.distinct().to_string(),
        oldest,
        newest,
        money(&summary.captures, summary.without_amount),
        or_none(&named),
        todo,
    ]
}

fn document(summary: &Summary, now_ms: i64) -> Value {
    let money: Map<String, Value> = summary
        .captures
        .money()
        .iter()
        .map(|(currency, sum)| (currency.code().to_owned(), json!(sum.to_string())))
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
        "letters": summary.dead_letters,
        "distinctCaptures": summary.captures.distinct(),
        "oldestDeadAt": at(|ages| ages.0).and_then(rfc3339_of_ms),
        "newestDeadAt": at(|ages| ages.1).and_then(rfc3339_of_ms),
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
