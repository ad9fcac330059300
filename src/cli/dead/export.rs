//! `capture-worker dead export`: prints dead letters as JSON lines, with nothing left out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{FilterArgs, Opened, Purpose, ended, rows};
use crate::{
    broker::BrowsedMessage,
    cli::{Exit, is_lost, print_json, watch::Watch},
    config::Settings,
    dead_letters::{DeskError, Flow, Who},
    domain::{replay::dead_letter::DeadLetter, time::epoch_ms},
};

#[derive(clap::Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    filter: FilterArgs,
    /// Accepted because every other command has it: the output is JSON lines anyway
    #[arg(long, hide = true)]
    json: bool,
}

impl Export {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let watch = match Watch::start(true) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let nobody = (Who::default(), None);
        let opened = match Opened::open(settings, Purpose::Look, nobody, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let exported = self.export(&opened).await;
        opened.close().await;
        match exported {
            Ok(()) => Exit::Done,
            Err(error) => ended(&error),
        }
    }

    async fn export(&self, opened: &Opened) -> Result<(), DeskError> {
        let filter = self.filter.filter();
        let mut left = self.filter.limit;
        for class in filter.classes() {
            let visit = async |found: &BrowsedMessage, dead_letter: DeadLetter| {
                if left == Some(0) {
                    return Ok(Flow::Stop);
                }
                left = left.map(|left| left - 1);
                print_json(&whole(found, &dead_letter));
                Ok(if is_lost() { Flow::Stop } else { Flow::Keep })
            };
            if opened.desk.walk(class, &filter, visit).await? == Flow::Stop {
                break;
            }
        }
        Ok(())
    }
}

/// A dead letter with the headers, the properties and the body of its message. `body` is the text
/// if the body is UTF-8; otherwise `bodyBase64` holds its bytes.
pub(super) fn whole(found: &BrowsedMessage, dead_letter: &DeadLetter) -> Value {
    let mut document = rows::document(dead_letter, epoch_ms(OffsetDateTime::now_utc()));
    let (headers, properties) = found.to_json();
    document["headers"] = headers;
    document["properties"] = properties;
    match std::str::from_utf8(&found.body) {
        Ok(text) => document["body"] = json!(text),
        Err(_) => document["bodyBase64"] = json!(STANDARD.encode(&found.body)),
    }
    document
}
