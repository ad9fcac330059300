//! `capture-worker dead show`: prints one dead letter and the actions that are open for it.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Opened, Purpose, ended, export::whole};
use crate::{
    broker::BrowsedMessage,
    cli::{
        Exit,
        desk::{age, plain},
        is_lost,
        json::Array,
        print_error, print_line,
        table::TextTable,
        watch::Watch,
    },
    config::Settings,
    dead_letters::{DeskError, Filter, Flow, RefusalText, Who},
    domain::{
        capture::{class::Class, family::fresh_id},
        replay::{
            Changes, ReplayPolicy,
            dead_letter::DeadLetter,
            decision::{Decision, decide},
            evidence::{CaptureSeen, PaymentSeen},
            prepare,
            refusal::{PolicyRefusal, ReplayRefusal},
        },
        time::{epoch_ms, rfc3339_of_ms},
    },
    sanitize::is_hidden,
};

/// The most copies of one dead letter that are printed.
const COPIES_MAX: usize = 20;

#[derive(clap::Args)]
pub(in crate::cli) struct Show {
    /// The captureRequestId of the dead letter
    #[arg(value_name = "ID")]
    id: String,
    /// Search only the dead letters of this class
    #[arg(long, value_name = "CLASS")]
    class: Option<Class>,
    /// Ask the gateway what became of the capture and what is left of the authorization
    #[arg(long)]
    inquire: bool,
    /// Print one JSON document: an array, because there may be copies
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let watch = match Watch::start(false) {
            Ok(watch) => watch,
            Err(exit) => return exit,
        };
        let nobody = (Who::default(), None);
        let purpose = if self.inquire { Purpose::Inquire } else { Purpose::Look };
        let opened = match Opened::open(settings, purpose, nobody, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let exit = match self.find(&opened).await {
            Ok(found) if found.is_empty() => {
                print_error(&format!(
                    "error: no dead letter has the captureRequestId {}",
                    plain(&self.id)
                ));
                Exit::Failed
            }
            Ok(found) => {
                self.show(&opened, &found).await;
                Exit::Done
            }
            Err(error) => ended(&error),
        };
        opened.close().await;
        exit
    }

    async fn find(&self, opened: &Opened) -> Result<Vec<(BrowsedMessage, DeadLetter)>, DeskError> {
        let filter = Filter {
            classes: self.class.into_iter().collect(),
            ids: vec![self.id.clone()],
            ..Filter::default()
        };
        let mut copies = Vec::new();
        for class in filter.classes() {
            let visit = async |found: &BrowsedMessage, dead_letter: DeadLetter| {
                copies.push((found.clone(), dead_letter));
                Ok(if copies.len() < COPIES_MAX { Flow::Keep } else { Flow::Stop })
            };
            opened.desk.walk(class, &filter, visit).await?;
        }
        Ok(copies)
    }

    async fn show(&self, opened: &Opened, copies: &[(BrowsedMessage, DeadLetter)]) {
        let mut array = self.json.then(Array::begin);
        for (n, (found, dead_letter)) in copies.iter().enumerate() {
            if is_lost() {
                return;
            }
            let inquired = match &dead_letter.job {
                Ok(job) if self.inquire => {
                    Some(opened.desk.inquire(job, &dead_letter.history).await)
                }
                _ => None,
            };
            match &mut array {
                Some(array) => array.add(&document(found, dead_letter, inquired.as_ref())),
                None => {
                    if n > 0 {
                        print_line("");
                    }
                    print(found, dead_letter, inquired.as_ref());
                }
            }
        }
        if let Some(array) = array {
            array.end();
        }
    }
}

/// Prints a dead letter: a table of facts, the message as it is, and the open actions.
fn print(
    found: &BrowsedMessage,
    dead_letter: &DeadLetter,
    inquired: Option<&(CaptureSeen, PaymentSeen)>,
) {
    let mut table = TextTable::untitled();
    for (name, text) in facts(dead_letter, inquired) {
        table.add([name.to_owned(), plain(&text)]);
    }
    table.flush();
    // The message and the actions are not in the table: it would wrap them on a terminal, and then
    // they could not be copied.
    let (headers, properties) = found.to_json();
    let body = String::from_utf8_lossy(&found.body);
    for (name, text) in [
        ("headers", &*headers.to_string()),
        ("properties", &properties.to_string()),
        ("body", &body),
    ] {
        print_line(&format!("{name:<18}{text}"));
    }
    print_line("open actions");
    actions(dead_letter, inquired).iter().for_each(|action| print_line(&format!("  {action}")));
}

/// The facts about a dead letter, each with its name.
fn facts(
    dead_letter: &DeadLetter,
    inquired: Option<&(CaptureSeen, PaymentSeen)>,
) -> Vec<(&'static str, String)> {
    let now_ms = epoch_ms(OffsetDateTime::now_utc());
    let history = &dead_letter.history;
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let dead_at = dead_letter.dead_at_ms.and_then(rfc3339_of_ms).unwrap_or_else(|| "-".into());
    let ago =
        dead_letter.age_ms(now_ms).map(|ms| format!(" ({} ago)", age(ms))).unwrap_or_default();
    let amount = dead_letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let word = history.last_reply.as_ref().map(|reply| format!("{} {}", reply.status, reply.code));
    let signed = if dead_letter.signed { "signed by the gateway" } else { "not signed" };
    let (status, code) =
        (or_none(dead_letter.status.as_deref()), or_none(dead_letter.code.as_deref()));
    let attempts = format!(
        "{}; last reply of the gateway: {}; a request may have been sent: {}",
        history.attempts,
        or_none(word.as_deref()),
        if dead_letter.sent() { "yes" } else { "no" }
    );
    let replays = format!("{}; redeliveries: {}", history.replays, history.returns);
    let mut facts = vec![
        ("captureRequestId", or_none(dead_letter.id())),
        ("paymentId", or_none(dead_letter.payment_id())),
        ("amount", amount),
        ("class", format!("{}: {}", dead_letter.class, dead_letter.advice())),
        ("verdict", format!("{status} {code}, {signed}")),
        ("message", or_none(dead_letter.message.as_deref())),
        ("given up", format!("{dead_at}{ago}")),
        ("attempts", attempts),
        ("replays", replays),
    ];
    if let Some(death) = &dead_letter.broker_death {
        let (reason, queue) = (death.reason.word(), &death.queue);
        let broker = format!(
            "the broker dead-lettered it ({reason}) from queue {queue}; that does not show whether \
             a request was sent"
        );
        facts.push(("broker", broker));
    }
    for (name, id) in [("parent", &history.parent), ("origin", &history.origin)] {
        facts.extend(id.clone().map(|id| (name, id)));
    }
    let broken = match &dead_letter.job {
        Ok(job) => job.forward_error.as_deref(),
        Err(malformed) => Some(&malformed.reason),
    };
    facts.extend(broken.map(|error| ("invalid job", error.to_string())));
    if let Some((seen, payment)) = inquired {
        facts.push(("gateway now", seen.words()));
        let left = payment.left.map(|left| format!("{left} (smallest unit)"));
        facts.extend(left.map(|left| ("left to capture", left)));
        facts.extend(payment.authorized_until.clone().map(|until| ("authorized until", until)));
    }
    facts
}

/// The commands that an operator can run on a dead letter, each with a comment on what it does.
fn actions(dead_letter: &DeadLetter, inquired: Option<&(CaptureSeen, PaymentSeen)>) -> Vec<String> {
    let id = dead_letter.id().map(quoted);
    let select = match &id {
        Some(id) => format!("--class {} --id={id}", dead_letter.class),
        None => format!("--class {}", dead_letter.class),
    };
    let (command, mut actions) = ("capture-worker dead", Vec::new());
    if inquired.is_none()
        && let (Some(id), true) = (&id, dead_letter.job.is_ok())
    {
        actions.push(format!("{command} show --inquire -- {id}    # ask the gateway about it now"));
    }
    let now = OffsetDateTime::now_utc();
    let mut may_discard = true;
    let decision = match (prepare(dead_letter, &Changes::default(), now), inquired) {
        (Err(refusal), _) => Decision::Refuse(refusal.into()),
        (Ok(replay), Some((seen, payment))) => decide(dead_letter, replay, seen, payment, now),
        (Ok(replay), None) => Decision::Send(replay),
    };
    match decision {
        Decision::Send(replay) if replay.policy == ReplayPolicy::FreshId => {
            let child = dead_letter.id().map(fresh_id).unwrap_or_default();
            actions.push(format!(
                "{command} replay {select}    # as {child}, if this id captured nothing"
            ));
        }
        Decision::Send(replay) => {
            actions.push(format!("{command} replay {select}    # {}", replay.policy.words()));
        }
        Decision::Settle(_) => {
            may_discard = false;
            actions.push(format!(
                "{command} replay {select}    # publish that it is captured, remove the dead letter"
            ));
        }
        Decision::Refuse(refusal) => {
            let RefusalText { reason, instead } = RefusalText::from(&refusal);
            actions.push(format!("no replay: {}; instead: {instead}", plain(&reason)));
            if refusal == ReplayRefusal::Policy(PolicyRefusal::ExpiresAtPassed) {
                actions.push(format!("{command} replay {select} --expires-at TIME"));
            }
        }
    }
    if dead_letter.class == Class::Limit && !dead_letter.has_goods() {
        let value = inquired.and_then(|(_, payment)| payment.left).filter(|left| *left > 0);
        let value = value.map_or_else(|| "N".to_owned(), |left| left.to_string());
        actions.push(format!(
            "{command} replay {select} --capture-value {value}    # capture a lower amount"
        ));
    }
    if may_discard {
        actions.push(format!("{command} discard {select} --reason TEXT"));
    }
    actions
}

/// An id as a word of a shell command that can be copied.
fn quoted(id: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if !id.starts_with('-') && id.chars().all(is_plain) {
        return id.to_owned();
    }
    if !id.chars().any(is_hidden) {
        return format!("'{}'", id.replace('\'', r"'\''"));
    }
    // ANSI-C quoting of bash and zsh: the exact id, without a character that a terminal hides.
    let mut quoted = "$'".to_owned();
    for c in id.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if is_hidden(c) && u32::from(c) > 0xffff => {
                quoted.push_str(&format!("\\U{:08x}", u32::from(c)));
            }
            c if is_hidden(c) => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

fn document(
    found: &BrowsedMessage,
    dead_letter: &DeadLetter,
    inquired: Option<&(CaptureSeen, PaymentSeen)>,
) -> Value {
    let mut document = whole(found, dead_letter);
    let word = dead_letter.history.last_reply.as_ref();
    document["lastWord"] =
        json!(word.map(|word| json!({"code": word.code, "status": word.status})));
    document["returns"] = json!(dead_letter.history.returns);
    document["advice"] = json!(dead_letter.advice());
    if let Some((seen, payment)) = inquired {
        document["gateway"] = json!({
            "says": seen.words(),
            "left": payment.left.map(|left| left.to_string()),
            "authorizedUntil": payment.authorized_until,
        });
    }
    document["actions"] = json!(actions(dead_letter, inquired));
    document
}
