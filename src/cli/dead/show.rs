//! `capture-worker dead show`.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Opened, Purpose, ended, export::whole};
use crate::{
    broker::Found,
    cli::{
        Exit, complain,
        desk::{age, plain},
        is_lost,
        json::Array,
        say,
        watch::Watch,
    },
    config::Settings,
    dead_letters::{DeskError, Filter, Flow, Who, rfc3339},
    domain::{
        class::Class,
        evidence::{Decision, PaymentSeen, Seen, decide},
        letter::DeadLetter,
        replay::{Changes, Policy, fresh_id, prepare},
        settle::epoch_ms,
    },
    sanitize::is_hidden,
};

/// Copies of one letter that are shown at most.
const COPIES_MAX: usize = 20;

#[derive(clap::Args)]
pub(in crate::cli) struct Show {
    /// The captureRequestId
    #[arg(value_name = "ID")]
    id: String,
    /// Look only at letters of this class
    #[arg(long, value_name = "CLASS")]
    class: Option<Class>,
    /// Ask the gateway what it says now
    #[arg(long)]
    inquire: bool,
    /// Print one JSON document: an array, for there may be copies
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self, settings: &Settings) -> Exit {
        let Ok(watch) = Watch::start(false) else { return Exit::Failed };
        let nobody = (Who::default(), None);
        let purpose = if self.inquire { Purpose::Inquire } else { Purpose::Look };
        let opened = match Opened::open(settings, purpose, nobody, &watch).await {
            Ok(opened) => opened,
            Err(exit) => return exit,
        };
        let exit = match self.find(&opened).await {
            Ok(found) if found.is_empty() => {
                complain(&format!(
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

    async fn find(&self, opened: &Opened) -> Result<Vec<(Found, DeadLetter)>, DeskError> {
        let filter = Filter {
            classes: self.class.into_iter().collect(),
            ids: vec![self.id.clone()],
            ..Filter::default()
        };
        let mut copies = Vec::new();
        for class in filter.classes() {
            let visit = async |found: &Found, letter: DeadLetter| {
                copies.push((found.clone(), letter));
                Ok(if copies.len() < COPIES_MAX { Flow::Keep } else { Flow::Stop })
            };
            opened.desk.walk(class, &filter, visit).await?;
        }
        Ok(copies)
    }

    async fn show(&self, opened: &Opened, copies: &[(Found, DeadLetter)]) {
        let mut array = self.json.then(Array::begin);
        for (n, (found, letter)) in copies.iter().enumerate() {
            if is_lost() {
                return;
            }
            let inquired = match &letter.job {
                Ok(job) if self.inquire => Some(opened.desk.inquire(job, &letter.history).await),
                _ => None,
            };
            match &mut array {
                Some(array) => array.add(&document(found, letter, inquired.as_ref())),
                None => {
                    if n > 0 {
                        say("");
                    }
                    lines(found, letter, inquired.as_ref()).iter().for_each(|line| say(line));
                }
            }
        }
        if let Some(array) = array {
            array.end();
        }
    }
}

/// What is known, a line for each thing.
fn lines(
    found: &Found,
    letter: &DeadLetter,
    inquired: Option<&(Seen, PaymentSeen)>,
) -> Vec<String> {
    let now_ms = epoch_ms(OffsetDateTime::now_utc());
    let history = &letter.history;
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    let dead_at = letter.dead_at_ms.and_then(rfc3339).unwrap_or_else(|| "-".into());
    let ago = letter.age_ms(now_ms).map(|ms| format!(" ({} ago)", age(ms))).unwrap_or_default();
    let amount = letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    let word = history.last_word.as_ref().map(|word| format!("{} {}", word.status, word.code));
    let signed = if letter.signed { "signed by the gateway" } else { "not signed" };
    let mut lines = vec![
        format!("captureRequestId  {}", or_none(letter.id())),
        format!("paymentId         {}", or_none(letter.payment_id())),
        format!("amount            {amount}"),
        format!("class             {}: {}", letter.class, letter.advice()),
        format!(
            "verdict           {} {}, {signed}",
            or_none(letter.status.as_deref()),
            or_none(letter.code.as_deref())
        ),
        format!("message           {}", or_none(letter.message.as_deref())),
        format!("given up          {dead_at}{ago}"),
        format!(
            "attempts          {}, the gateway's last word: {}; a request may have left: {}",
            history.attempts,
            or_none(word.as_deref()),
            if letter.sent() { "yes" } else { "no" }
        ),
        format!("replays           {}, returns by the broker {}", history.replays, history.returns),
    ];
    if let Some(death) = &letter.broker_death {
        lines.push(format!(
            "broker            dead-lettered it itself: {}, from queue {}; that proves nothing \
             about whether a request has left",
            plain(death.reason.word()),
            plain(&death.queue)
        ));
    }
    for (name, id) in [("parent", &history.parent), ("origin", &history.origin)] {
        if let Some(id) = id {
            lines.push(format!("{name:<18}{}", plain(id)));
        }
    }
    let broken = match &letter.job {
        Ok(job) => job.forward_error.as_deref(),
        Err(malformed) => Some(&malformed.reason),
    };
    if let Some(error) = broken {
        lines.push(format!("no job            {}", plain(&error.to_string())));
    }
    let (headers, properties) = found.shown();
    lines.push(format!("headers           {}", plain(&headers.to_string())));
    lines.push(format!("properties        {}", plain(&properties.to_string())));
    lines.push(format!("body              {}", plain(&String::from_utf8_lossy(&found.body))));
    if let Some((seen, payment)) = inquired {
        lines.push(format!("the gateway now   {}", plain(&seen.words())));
        if let Some(left) = payment.left {
            lines.push(format!("left to capture   {left} (smallest unit)"));
        }
        if let Some(until) = &payment.authorized_until {
            lines.push(format!("authorized until  {}", plain(until)));
        }
    }
    lines.push("open actions".into());
    lines.extend(actions(letter, inquired).iter().map(|action| format!("  {action}")));
    lines
}

/// The commands that are open for it, and what each does.
fn actions(letter: &DeadLetter, inquired: Option<&(Seen, PaymentSeen)>) -> Vec<String> {
    let id = letter.id().map(quoted);
    let select = match &id {
        Some(id) => format!("--class {} --id={id}", letter.class),
        None => format!("--class {}", letter.class),
    };
    let (command, mut actions) = ("capture-worker dead", Vec::new());
    if inquired.is_none()
        && let (Some(id), true) = (&id, letter.job.is_ok())
    {
        actions.push(format!("{command} show --inquire -- {id}    # what the gateway says now"));
    }
    let now = OffsetDateTime::now_utc();
    let mut may_discard = true;
    let decision = match (prepare(letter, &Changes::default(), now), inquired) {
        (Err(refusal), _) => Decision::Refuse(refusal),
        (Ok(replay), Some((seen, payment))) => decide(letter, replay, seen, payment, now),
        (Ok(replay), None) => Decision::Send(replay),
    };
    match decision {
        Decision::Send(replay) if replay.policy == Policy::FreshId => {
            let child = letter.id().map(fresh_id).unwrap_or_default();
            actions.push(format!(
                "{command} replay {select}    # as {child}, after asking about this id"
            ));
        }
        Decision::Send(replay) => {
            actions.push(format!("{command} replay {select}    # {}", replay.policy.words()));
        }
        Decision::Settle(_) => {
            may_discard = false;
            actions.push(format!("{command} replay {select}    # it is captured: its publisher is told, the letter goes"));
        }
        Decision::Refuse(refusal) => {
            actions.push(format!(
                "no replay: {}; instead: {}",
                plain(&refusal.reason),
                refusal.instead
            ));
            if refusal.instead.contains("--expires-at") {
                actions.push(format!("{command} replay {select} --expires-at TIME"));
            }
        }
    }
    if letter.class == Class::Limit && !letter.has_goods() {
        let value = inquired.and_then(|(_, payment)| payment.left).filter(|left| *left > 0);
        let value = value.map_or_else(|| "N".to_owned(), |left| left.to_string());
        actions
            .push(format!("{command} replay {select} --capture-value {value}    # a lower amount"));
    }
    if may_discard {
        actions.push(format!("{command} discard {select} --reason TEXT"));
    }
    actions
}

/// For a shell.
fn quoted(id: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if !id.starts_with('-') && id.chars().all(is_plain) {
        return id.to_owned();
    }
    if !id.chars().any(is_hidden) {
        return format!("'{}'", id.replace('\'', r"'\''"));
    }
    // As bash and zsh read it: the very id, with nothing in it that can't be seen.
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

fn document(found: &Found, letter: &DeadLetter, inquired: Option<&(Seen, PaymentSeen)>) -> Value {
    let mut document = whole(found, letter);
    let word = letter.history.last_word.as_ref();
    document["lastWord"] =
        json!(word.map(|word| json!({"code": word.code, "status": word.status})));
    document["returns"] = json!(letter.history.returns);
    document["advice"] = json!(letter.advice());
    if let Some((seen, payment)) = inquired {
        document["gateway"] = json!({
            "says": seen.words(),
            "left": payment.left.map(|left| left.to_string()),
            "authorizedUntil": payment.authorized_until,
        });
    }
    document["actions"] = json!(actions(letter, inquired));
    document
}
