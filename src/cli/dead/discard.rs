//! `capture-worker dead discard`: confirms with the operator, then removes dead letters.

use serde_json::json;
use time::OffsetDateTime;

use super::{FilterArgs, Opened, Purpose, ended, replay::Counted, rows};
use crate::{
    cli::{
        Exit,
        desk::{can_ask, confirm, plain, who},
        has_failed, is_lost,
        json::Array,
        print_error, print_json, print_json_part, print_line,
        watch::Watch,
    },
    config::Settings,
    dead_letters::{Captures, Discard, RefusalText},
    domain::{
        replay::{dead_letter::DeadLetter, refusal::DiscardRefusal},
        time::epoch_ms,
    },
};

#[derive(clap::Args)]
pub(in crate::cli) struct DiscardArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Why the dead letters are discarded; recorded in the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask for confirmation. Required without a terminal
    #[arg(long)]
    yes: bool,
    /// On whose behalf; recorded in the audit
    #[arg(long = "as", value_name = "NAME")]
    as_: Option<String>,
    /// Print what would be discarded, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document with each dead letter and what was done
    #[arg(long)]
    json: bool,
}

impl DiscardArgs {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let filter = match self.filter.names_dead_letters() {
            Ok(filter) => filter,
            Err(exit) => return exit,
        };
        if self.reason.trim().is_empty() {
            print_error("error: --reason is empty: write why the dead letters are discarded");
            return Exit::Usage;
        }
        if !(self.yes || self.dry_run || can_ask()) {
            print_error(
                "error: cannot ask for confirmation without a terminal: use --yes to discard \
                 without asking",
            );
            return Exit::Usage;
        }
        let watch = match Watch::start(true) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let purpose = if self.dry_run { Purpose::Look } else { Purpose::Discard };
        let by = (who(self.as_.clone()), Some(self.reason.clone()));
        let opened = match Opened::open(settings, purpose, by, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let discard =
            Discard { filter, limit: self.filter.limit, caps: None, is_plan: self.dry_run };
        let exit = self.act(&opened, discard).await;
        opened.close().await;
        exit
    }

    async fn act(&self, opened: &Opened, mut discard: Discard) -> Exit {
        if !(self.dry_run || self.yes) {
            let counted = match Counted::of(opened, &discard.filter, discard.limit).await {
                Ok(counted) => counted,
                Err(error) => return ended(&error),
            };
            let question = format!("Discard {}?", counted.words);
            if !confirm(&question, &opened.desk.stop).await {
                print_error("nothing was discarded");
                return Exit::Failed;
            }
            // Discard at most what was confirmed: dead letters that arrived since then stay.
            discard.caps = Some(counted.dead_letters);
        }
        self.discard(opened, &discard).await
    }

    async fn discard(&self, opened: &Opened, discard: &Discard) -> Exit {
        let (mut discarded, mut refused, mut captures) = (0_u64, 0_u64, Captures::default());
        if self.json {
            print_json_part(&format!("{{\"dryRun\":{},\"letters\":", self.dry_run));
        }
        let mut array = self.json.then(Array::begin);
        let done = opened
            .desk
            .discard(discard, |dead_letter, done| {
                if done.is_ok() {
                    discarded += 1;
                    captures.add(dead_letter.id(), dead_letter.amount());
                } else {
                    refused += 1;
                }
                match &mut array {
                    Some(array) => array.add(&document(dead_letter, done)),
                    None => print_line(&line(dead_letter, done, self.dry_run)),
                }
                if self.dry_run && is_lost() {
                    opened.desk.stop.cancel();
                }
            })
            .await;
        let sums = match discarded {
            0 => String::new(),
            _ => format!(" ({})", rows::captures_in_words(&captures)),
        };
        match array {
            Some(array) => {
                array.end();
                let error = json!(done.as_ref().err().map(ToString::to_string));
                let distinct = captures.distinct();
                print_json(&format!(
                    ",\"discarded\":{discarded},\"refused\":{refused},\
                     \"distinctCaptures\":{distinct},\"error\":{error}}}"
                ));
            }
            None if self.dry_run => print_line(&format!(
                "would discard {discarded}{sums}, refuse {refused}; nothing was changed"
            )),
            None => print_line(&format!("discarded {discarded}{sums}, refused {refused}")),
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
            Ok(()) if refused > 0 => Exit::Failed,
            Ok(()) => Exit::Done,
        }
    }
}

fn line(
    dead_letter: &DeadLetter,
    done: Result<Option<&str>, &DiscardRefusal>,
    dry_run: bool,
) -> String {
    let would = if dry_run { "would be " } else { "" };
    let id = dead_letter.id().map_or_else(|| "-".to_owned(), plain);
    let amount = dead_letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let what = match done {
        Ok(None) => format!("{would}discarded"),
        Ok(Some(evidence)) => format!("{would}discarded [{}]", plain(evidence)),
        Err(refusal) => {
            let RefusalText { reason, instead } = refusal.into();
            format!("refused: {}; instead: {instead}", plain(&reason))
        }
    };
    format!("{} {id} {amount}: {what}", dead_letter.class)
}

fn document(
    dead_letter: &DeadLetter,
    done: Result<Option<&str>, &DiscardRefusal>,
) -> serde_json::Value {
    let refusal = done.err().map(RefusalText::from);
    json!({
        "letter": rows::document(dead_letter, epoch_ms(OffsetDateTime::now_utc())),
        "discarded": done.is_ok(),
        "evidence": done.ok().flatten(),
        "refusal": refusal.as_ref().map(|refusal| &refusal.reason),
        "instead": refusal.as_ref().map(|refusal| &refusal.instead),
    })
}
