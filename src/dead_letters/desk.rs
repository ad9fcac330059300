//! Where letters are taken up one by one, in their order, and put back.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Filter, Record, Summary, Who};
use crate::{
    broker::{Browsed, Found, Look, LookError, PublishError, Session},
    domain::{
        class::{Class, Codes},
        evidence::{PaymentSeen, Seen},
        forward::ForwardFields,
        history::History,
        job::Job,
        letter::DeadLetter,
        replay::Refusal,
        settle::epoch_ms,
    },
    gateway::Gateway,
    lease::{Away, Leases},
};

/// The broker takes back what is held for half an hour, and others wait to look: letters are put back and taken up again.
const HOLD_MAX: Duration = Duration::from_secs(120);
/// Between two such times, others may look.
const PAUSE: Duration = Duration::from_secs(1);

/// Why work at the desk ended early. Whatever was taken up is back in its queue.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// Looking failed.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The audit could not be written: the act that was to be written down was not done.
    #[error("the audit can't be written, so nothing was done to the letter: {0}")]
    Audit(PublishError),
    /// What was written down could not be done.
    #[error("{what} could not be published, so the letter stays: {error}")]
    Publish {
        /// What.
        what: &'static str,
        /// Why.
        error: PublishError,
    },
    /// A fresh id needs the payment's lease.
    #[error("{0}: a fresh id is sent only under the lease of its payment")]
    Redis(#[from] Away),
    /// The first of several did not end well.
    #[error("the canary did not end well, and nothing more was sent: {0}")]
    Canary(String),
    /// Told to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What becomes of a letter, and of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The letter stays.
    Keep,
    /// The letter is taken out.
    Remove,
    /// The letter stays, and no other is taken up.
    Stop,
}

/// How far a walk has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Somebody else looks at this class.
    Waits(Class),
    /// So many letters are to be looked at.
    Begins(Class, u32),
    /// One more was.
    Advances,
    /// All letters of the class are back.
    Ends,
}

/// All that is needed for looks and acts.
pub struct Desk {
    /// The broker.
    pub session: Arc<Session>,
    /// The gateway, if there is one to ask; else why not.
    pub gateway: Result<Gateway, String>,
    /// The leases.
    pub leases: Leases,
    /// The table of codes.
    pub codes: Codes,
    /// The fields of jobs that go to the gateway.
    pub forward: ForwardFields,
    /// Who acts.
    pub who: Who,
    /// Why.
    pub reason: Option<String>,
    /// Told to stop.
    pub stop: CancellationToken,
    /// Who watches.
    pub watcher: Box<dyn Fn(Progress)>,
    /// Whether a queue may be republished whose messages the broker has counted so often that a
    /// policy's delivery limit may be near. Without that, each browse counts towards such a limit.
    pub may_republish: bool,
}

impl Desk {
    /// Takes up the letters of a class that are there now and meant by the filter, and does with each what `visit` says.
    ///
    /// # Errors
    /// What `visit` says, or the broker is lost, or told to stop; all letters are back, or will be.
    pub async fn walk(
        &self,
        class: Class,
        filter: &Filter,
        mut visit: impl AsyncFnMut(&Found, DeadLetter) -> Result<Flow, DeskError>,
    ) -> Result<Flow, DeskError> {
        let browsed = Browsed::DeadLetters(class);
        let (mut left, mut kept) = (None, HashMap::new());
        loop {
            let waits = || (self.watcher)(Progress::Waits(class));
            let Some(mut look) = self.or_stop(Look::open(&self.session, browsed, waits)).await??
            else {
                return Ok(Flow::Keep);
            };
            // Not to be interrupted: half of a queue that is republished is out of order.
            if self.may_republish && look.may_republish(&self.session).await? && left.is_some() {
                // What came meanwhile stands among the rest.
                let kept = kept.values().sum::<u32>();
                left = Some(look.total().saturating_sub(kept));
            }
            if left.is_none() {
                (self.watcher)(Progress::Begins(class, look.total()));
            }
            let mut pass = Pass { left: left.unwrap_or_else(|| look.total()), kept };
            let walked = self.pass(&mut look, class, filter, &mut pass, &mut visit).await;
            let closed = look.close().await;
            let flow = walked?;
            closed?;
            if pass.left == 0 || flow == Flow::Stop {
                (self.watcher)(Progress::Ends);
                return Ok(flow);
            }
            (left, kept) = (Some(pass.left), pass.kept);
            self.or_stop(tokio::time::sleep(PAUSE)).await?;
        }
    }

    /// Each class at a glance that has letters meant by the filter, of the first so many; and how the walk ended: what was
    /// counted before an error counts.
    pub async fn summaries(
        &self,
        filter: &Filter,
        limit: Option<u64>,
    ) -> (Vec<Summary>, Result<Flow, DeskError>) {
        let (mut summaries, mut left) = (Vec::new(), limit);
        for class in filter.classes() {
            let mut summary = Summary::of(class);
            let visit = async |_: &Found, letter: DeadLetter| {
                if left == Some(0) {
                    return Ok(Flow::Stop);
                }
                left = left.map(|left| left - 1);
                summary.add(&letter);
                Ok(Flow::Keep)
            };
            let walked = self.walk(class, filter, visit).await;
            if summary.letters > 0 {
                summaries.push(summary);
            }
            if !matches!(walked, Ok(Flow::Keep)) {
                return (summaries, walked);
            }
        }
        (summaries, Ok(Flow::Keep))
    }

    /// Goes on where the last pass ended: what that one kept is passed over.
    async fn pass(
        &self,
        look: &mut Look,
        class: Class,
        filter: &Filter,
        pass: &mut Pass,
        visit: &mut impl AsyncFnMut(&Found, DeadLetter) -> Result<Flow, DeskError>,
    ) -> Result<Flow, DeskError> {
        let until = Instant::now() + HOLD_MAX;
        let mut known = pass.kept.clone();
        while pass.left > 0 && Instant::now() < until {
            // What is ready comes soon; a look that is left in the middle would give back out of order.
            if self.stop.is_cancelled() {
                return Err(DeskError::Interrupted);
            }
            let Some(found) = look.next().await? else {
                pass.left = 0;
                break;
            };
            let letter = found.letter(class, &self.forward);
            let which = which(&letter);
            if let Some(copies) = known.get_mut(&which).filter(|copies| **copies > 0) {
                *copies -= 1;
                continue;
            }
            pass.left -= 1;
            (self.watcher)(Progress::Advances);
            let flow = if filter.takes(&letter, epoch_ms(OffsetDateTime::now_utc())) {
                visit(&found, letter).await?
            } else {
                Flow::Keep
            };
            match flow {
                Flow::Remove => look.remove(&found).await?,
                Flow::Keep => *pass.kept.entry(which).or_default() += 1,
                Flow::Stop => return Ok(Flow::Stop),
            }
        }
        Ok(Flow::Keep)
    }

    async fn or_stop<T>(&self, work: impl Future<Output = T>) -> Result<T, DeskError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(DeskError::Interrupted),
            done = work => Ok(done),
        }
    }

    /// Asks the gateway what became of a job's capture, and of its payment.
    pub async fn inquire(&self, job: &Job, history: &History) -> (Seen, PaymentSeen) {
        match &self.gateway {
            Ok(gateway) => {
                let reply = gateway.inquire(&job.payment_id).await;
                (Seen::of(&reply, job, &self.codes), PaymentSeen::of(&reply, job, history))
            }
            Err(why) => {
                let reason = format!("the gateway was not asked: {why}");
                (Seen::Nothing { reason, code: None }, PaymentSeen::default())
            }
        }
    }

    /// Writes a record of an action on a letter, by this desk's operator and for its reason.
    pub(super) fn record(&self, action: super::Action, letter: &DeadLetter) -> Record {
        Record::of(&self.who, self.reason.as_deref(), action, letter)
    }

    /// Writes a record down.
    pub(super) async fn audit(&self, record: &Record) -> Result<(), DeskError> {
        let record = serde_json::to_vec(record).unwrap_or_default();
        self.session.audit(record).await.map_err(DeskError::Audit)
    }

    /// Writes down that a letter stays, and why.
    pub(super) async fn refuse(
        &self,
        letter: &DeadLetter,
        refusal: &Refusal,
        evidence: Option<String>,
    ) -> Result<(), DeskError> {
        let record = self.record(super::Action::Refuse, letter).refusing(refusal).seeing(evidence);
        self.audit(&record).await
    }
}

/// How far the passes have come.
struct Pass {
    /// Letters that were there at the beginning and were not taken up yet.
    left: u32,
    /// Those that were taken up and stayed, and how many copies of each.
    kept: HashMap<u64, u32>,
}

/// Tells letters apart, for as long as one command runs.
fn which(letter: &DeadLetter) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&letter.body, letter.dead_at_ms, letter.history.replays, &letter.code).hash(&mut hasher);
    hasher.finish()
}
