//! Browses the queues of dead letters: each one is read in its order, and returned or removed.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Filter, Record, Summaries, Who};
use crate::{
    broker::{BrowseError, BrowsedMessage, BrowsedQueue, Browser, PublishError, Session},
    domain::{
        capture::class::{Class, Codes},
        job::{Job, forward::ForwardFields, history::History},
        replay::{
            dead_letter::DeadLetter,
            evidence::{CaptureSeen, PaymentSeen},
            refusal::DiscardRefusal,
        },
        time::epoch_ms,
    },
    gateway::Gateway,
    lease::{Leases, Unavailable},
};

/// The longest time that messages stay unacked while a queue is browsed. Then they are returned,
/// and browsing continues with a new pass. RabbitMQ closes a channel whose messages stay unacked
/// for 30 minutes (`consumer_timeout`), and other commands wait for the queue until then.
const HOLD_MAX: Duration = Duration::from_secs(120);
/// The pause between two passes, in which another command can browse the queue.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a command ended early. Every message that it had read is back in its queue.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// Browsing the queue failed.
    #[error(transparent)]
    Browse(#[from] BrowseError),
    /// The audit record could not be published, so the act was not done.
    #[error("cannot write the audit record, so the dead letter is unchanged: {0}")]
    Audit(PublishError),
    /// The audit has the act, but its job or result could not be published.
    #[error("cannot publish {what}, so the dead letter stays in its queue: {error}")]
    Publish {
        /// The message that was not published, in words.
        what: &'static str,
        /// Why the broker did not confirm it.
        error: PublishError,
    },
    /// Redis is unavailable, and a fresh id needs the lease of its payment.
    #[error("{0}: a fresh id is sent only under the lease of its payment")]
    Redis(#[from] Unavailable),
    /// One of the first jobs of a replay was not captured in time, so the rest was not sent.
    #[error("the canary failed, so nothing more was sent: {0}")]
    Canary(String),
    /// The operator stopped the command.
    #[error("interrupted")]
    Interrupted,
}

/// What to do with a dead letter that was visited, and whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The dead letter stays; go on with the next one.
    Keep,
    /// The dead letter is removed from its queue; go on with the next one.
    Remove,
    /// The dead letter stays; stop browsing.
    Stop,
}

/// The progress of browsing, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another command is browsing this class; this one waits.
    Waits(Class),
    /// Browsing this class begins, with this many dead letters.
    Begins(Class, u32),
    /// One more dead letter was read.
    Advances,
    /// The class is done: all its messages were returned or removed.
    Ends,
}

/// What is needed to browse dead letters and to act on them.
pub struct Desk {
    /// The connection to the broker.
    pub session: Arc<Session>,
    /// The gateway, or why the settings give none.
    pub gateway: Result<Gateway, String>,
    /// The leases and recorded outcomes in Redis.
    pub leases: Leases,
    /// The class of each result code.
    pub codes: Codes,
    /// The fields of a job that are forwarded to the gateway.
    pub forward: ForwardFields,
    /// The operator, for the audit.
    pub who: Who,
    /// The reason that the operator gave, for the audit.
    pub reason: Option<String>,
    /// Cancelled when the operator stops the command.
    pub stop: CancellationToken,
    /// Called with the progress of browsing.
    pub watcher: Box<dyn Fn(Progress)>,
    /// Whether to republish a queue whose messages were delivered so often that the delivery limit
    /// of a policy may be near. Otherwise browsing could make the broker drop them.
    pub may_republish: bool,
}

impl Desk {
    /// Browses the dead letters of a class that are in its queue now. Calls `visit` for each one
    /// that the filter selects, and does what it returns.
    ///
    /// # Errors
    /// An error of `visit`, a lost connection, or [`DeskError::Interrupted`]. The broker returns
    /// every message that was not removed.
    pub async fn walk(
        &self,
        class: Class,
        filter: &Filter,
        mut visit: impl AsyncFnMut(&BrowsedMessage, DeadLetter) -> Result<Flow, DeskError>,
    ) -> Result<Flow, DeskError> {
        let browsed = BrowsedQueue::DeadLetters(class);
        let (mut left, mut kept) = (None, HashMap::new());
        loop {
            let waits = || (self.watcher)(Progress::Waits(class));
            let Some(mut look) =
                self.or_stop(Browser::open(&self.session, browsed, waits)).await??
            else {
                return Ok(Flow::Keep);
            };
            // Not cancellable: a queue that is republished by half is out of order.
            if self.may_republish && look.may_republish(&self.session).await? && left.is_some() {
                // Dead letters that arrived since then are now mixed with the rest: visit them too.
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

    /// The summary of each class that has dead letters which the filter selects, up to `limit` of
    /// them; and how browsing ended. What was counted before an error is returned too.
    pub async fn summaries(
        &self,
        filter: &Filter,
        limit: Option<u64>,
    ) -> (Summaries, Result<Flow, DeskError>) {
        let (mut summaries, mut left) = (Summaries::default(), limit);
        for class in filter.classes() {
            let visit = async |_: &BrowsedMessage, dead_letter: DeadLetter| {
                if left == Some(0) {
                    return Ok(Flow::Stop);
                }
                left = left.map(|left| left - 1);
                summaries.add(&dead_letter);
                Ok(Flow::Keep)
            };
            let walked = self.walk(class, filter, visit).await;
            summaries.end_class();
            if !matches!(walked, Ok(Flow::Keep)) {
                return (summaries, walked);
            }
        }
        (summaries, Ok(Flow::Keep))
    }

    /// Browses from the head of the queue, at most for [`HOLD_MAX`]. Skips the dead letters that an
    /// earlier pass visited and kept: they are at the head again.
    async fn pass(
        &self,
        look: &mut Browser,
        class: Class,
        filter: &Filter,
        pass: &mut Pass,
        visit: &mut impl AsyncFnMut(&BrowsedMessage, DeadLetter) -> Result<Flow, DeskError>,
    ) -> Result<Flow, DeskError> {
        let until = Instant::now() + HOLD_MAX;
        let mut known = pass.kept.clone();
        while pass.left > 0 && Instant::now() < until {
            // Stop only between two messages: cancelling a read in the middle would return messages
            // out of order. The next message arrives soon, because it is in the queue already.
            if self.stop.is_cancelled() {
                return Err(DeskError::Interrupted);
            }
            let Some(found) = look.next().await? else {
                pass.left = 0;
                break;
            };
            let dead_letter = found.dead_letter(class, &self.forward);
            let which = which(&dead_letter);
            if let Some(copies) = known.get_mut(&which).filter(|copies| **copies > 0) {
                *copies -= 1;
                continue;
            }
            pass.left -= 1;
            (self.watcher)(Progress::Advances);
            let flow = if filter.takes(&dead_letter, epoch_ms(OffsetDateTime::now_utc())) {
                visit(&found, dead_letter).await?
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

    /// Asks the gateway what became of the capture of a job, and of its payment.
    pub async fn inquire(&self, job: &Job, history: &History) -> (CaptureSeen, PaymentSeen) {
        match &self.gateway {
            Ok(gateway) => {
                let reply = gateway.inquire(&job.payment_id).await;
                (CaptureSeen::of(&reply, job, &self.codes), PaymentSeen::of(&reply, job, history))
            }
            Err(why) => {
                let reason = format!("cannot ask the gateway: {why}");
                (CaptureSeen::Nothing { reason, code: None }, PaymentSeen::default())
            }
        }
    }

    /// An audit record of an action on a dead letter, with the operator and the reason.
    pub(super) fn record(&self, action: super::Action, dead_letter: &DeadLetter) -> Record {
        Record::of(&self.who, self.reason.as_deref(), action, dead_letter)
    }

    /// Publishes an audit record, and waits for the confirm.
    pub(super) async fn audit(&self, record: &Record) -> Result<(), DeskError> {
        let record = serde_json::to_vec(record).unwrap_or_default();
        self.session.audit(record).await.map_err(DeskError::Audit)
    }

    /// Records in the audit that a dead letter stays, and why.
    pub(super) async fn refuse(
        &self,
        dead_letter: &DeadLetter,
        refusal: &DiscardRefusal,
        evidence: Option<String>,
    ) -> Result<(), DeskError> {
        let record =
            self.record(super::Action::Refuse, dead_letter).refusing(refusal).seeing(evidence);
        self.audit(&record).await
    }
}

/// The progress of the passes through one queue.
struct Pass {
    /// How many dead letters of those at the beginning were not visited yet.
    left: u32,
    /// The dead letters that were visited and kept, by [`which`], with the number of copies of
    /// each.
    kept: HashMap<u64, u32>,
}

/// A hash that tells dead letters apart while one command runs.
fn which(dead_letter: &DeadLetter) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&dead_letter.body, dead_letter.dead_at_ms, dead_letter.history.replays, &dead_letter.code)
        .hash(&mut hasher);
    hasher.finish()
}
