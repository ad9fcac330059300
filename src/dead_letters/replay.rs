//! Sending letters back to the one pipeline, by the policy of their class and within the operator's own bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    Desk, DeskError, Filter, Flow,
    act::{Decided, occupied},
};
use crate::{
    broker::{Found, Results},
    domain::{
        class::Class,
        evidence::{Decision, PaymentSeen, Seen, decide},
        letter::DeadLetter,
        money::{Currency, Money},
        outcome::Fate,
        replay::{Changes, Policy, Refusal, Replay, prepare},
    },
};

/// The first letters of a replay have ended well if they are captured within this time.
const CANARY_WAIT: Duration = Duration::from_secs(60);

/// What is sent back.
#[derive(Clone, Debug, Default)]
pub struct Replays {
    /// Which letters.
    pub filter: Filter,
    /// What changes.
    pub changes: Changes,
    /// At most so many are taken up.
    pub limit: Option<u64>,
    /// And so many of each class: those that somebody was asked about.
    pub caps: Option<BTreeMap<Class, u64>>,
    /// The time between two.
    pub every: Duration,
    /// So many are sent first, and must be captured before others are.
    pub canary: Option<u64>,
    /// The most that is sent, by currency, in the smallest unit; if any is named, others are not sent.
    pub max_money: BTreeMap<Currency, u64>,
}

/// What came of one letter, or would.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was, or would be, done.
    pub decision: Decision,
    /// What the gateway or the memory of outcomes said, if anybody asked.
    pub evidence: Option<String>,
}

/// How far a replay has come.
struct Run<'a> {
    desk: &'a Desk,
    replays: &'a Replays,
    taken: u64,
    taken_of: BTreeMap<Class, u64>,
    sent: u64,
    next: Instant,
    money: BTreeMap<Currency, u64>,
    canary: Option<(Results, BTreeSet<String>)>,
}

impl Desk {
    /// What a replay would do with each letter, by the gateway's word now. Nothing is sent and nothing is written.
    ///
    /// # Errors
    /// The walk ended early.
    pub async fn plan(
        &self,
        replays: &Replays,
        mut told: impl FnMut(&DeadLetter, &Told),
    ) -> Result<(), DeskError> {
        let mut run = Run::new(self, replays);
        for class in replays.filter.classes() {
            let visit = async |_: &Found, letter: DeadLetter| {
                if run.is_enough(letter.class) {
                    return Ok(Flow::Stop);
                }
                run.wait().await?;
                let prepared = prepare(&letter, &replays.changes, OffsetDateTime::now_utc());
                let planned = match prepared.and_then(|replay| run.bounded(replay)) {
                    Err(refusal) => Told { decision: Decision::Refuse(refusal), evidence: None },
                    Ok(replay) => self.foretell(&letter, replay).await,
                };
                run.count(&planned.decision);
                told(&letter, &planned);
                Ok(Flow::Keep)
            };
            self.walk(class, &replays.filter, visit).await?;
            if replays.limit.is_some_and(|limit| run.taken >= limit) {
                break;
            }
        }
        Ok(())
    }

    async fn foretell(&self, letter: &DeadLetter, replay: Replay) -> Told {
        let Ok(job) = &letter.job else {
            return Told { decision: Decision::Send(replay), evidence: None };
        };
        let is_fresh = replay.policy == Policy::FreshId;
        let known = self.leases.inspect(&job.payment_id, &job.capture_request_id).await;
        let refusal = match &known {
            Ok(known) => occupied(known, &job.capture_request_id),
            Err(away) => Some(Refusal::new(
                format!("{away}, and a fresh id is sent only under the lease of its payment"),
                "try again when Redis answers",
            )),
        };
        let withheld = self.leases.withheld().await.map(|why| Refusal::new(why, "try again then"));
        if let (Some(refusal), true) = (refusal.or(withheld), is_fresh) {
            return Told { decision: Decision::Refuse(refusal), evidence: None };
        }
        let (seen, payment) = match known.map(|known| known.known) {
            Ok(Some(Fate::Captured(capture))) => (Seen::Captured(capture), PaymentSeen::default()),
            _ => self.inquire(job, &letter.history).await,
        };
        let decision = decide(letter, replay, &seen, &payment, OffsetDateTime::now_utc());
        Told { decision, evidence: Some(seen.words()) }
    }

    /// Replays letters, each written down before; `told` hears of each once it is done.
    ///
    /// # Errors
    /// The walk ended early; letters that were not told of are where they were, and doing it again is safe.
    pub async fn replay(
        &self,
        replays: &Replays,
        mut told: impl FnMut(&DeadLetter, &Told),
    ) -> Result<(), DeskError> {
        let mut run = Run::new(self, replays);
        if replays.canary.is_some() {
            let results = Results::subscribe(&self.session).await;
            let results = results.map_err(|error| {
                DeskError::Canary(format!("its results can't be listened to: {error}"))
            })?;
            run.canary = Some((results, BTreeSet::new()));
        }
        for class in replays.filter.classes() {
            let visit = async |found: &Found, letter: DeadLetter| {
                if run.is_enough(letter.class) {
                    return Ok(Flow::Stop);
                }
                run.canary_ended().await?;
                run.wait().await?;
                let done = run.act(found, &letter).await?;
                told(&letter, &done);
                Ok(match done.decision {
                    Decision::Refuse(_) => Flow::Keep,
                    Decision::Send(_) | Decision::Settle(_) => Flow::Remove,
                })
            };
            self.walk(class, &replays.filter, visit).await?;
            if replays.limit.is_some_and(|limit| run.taken >= limit) {
                break;
            }
        }
        Ok(())
    }
}

impl<'a> Run<'a> {
    fn new(desk: &'a Desk, replays: &'a Replays) -> Self {
        Self {
            desk,
            replays,
            taken: 0,
            taken_of: BTreeMap::new(),
            sent: 0,
            next: Instant::now(),
            money: BTreeMap::new(),
            canary: None,
        }
    }

    /// Whether a limit is reached; counts one more of the class if not.
    fn is_enough(&mut self, class: Class) -> bool {
        let of_class = self.taken_of.entry(class).or_default();
        let caps = self.replays.caps.as_ref();
        let cap = caps.map(|caps| caps.get(&class).copied().unwrap_or(0));
        if self.replays.limit.is_some_and(|limit| self.taken >= limit)
            || cap.is_some_and(|cap| *of_class >= cap)
        {
            return true;
        }
        self.taken += 1;
        *of_class += 1;
        false
    }

    /// Keeps to the rate.
    async fn wait(&mut self) -> Result<(), DeskError> {
        tokio::select! {
            () = self.desk.stop.cancelled() => return Err(DeskError::Interrupted),
            () = tokio::time::sleep_until(self.next) => {}
        }
        self.next = Instant::now() + self.replays.every;
        Ok(())
    }

    /// What the operator's own bounds leave of a replay.
    fn bounded(&self, replay: Replay) -> Result<Replay, Refusal> {
        if self.canary.is_some() && replay.id.is_none() {
            return Err(Refusal::new(
                "a letter without a readable id has no result, so it can be no canary",
                "replay it without --canary",
            ));
        }
        if self.replays.max_money.is_empty() {
            return Ok(replay);
        }
        let is_within = |amount: Money| {
            let sent = self.money.get(&amount.currency()).copied().unwrap_or_default();
            let max = self.replays.max_money.get(&amount.currency()).copied().unwrap_or_default();
            sent.saturating_add(amount.value()) <= max
        };
        match replay.amount {
            Some(amount) if is_within(amount) => Ok(replay),
            Some(amount) => Err(Refusal::new(
                format!("{amount} more would be above --max-money"),
                "raise --max-money, or name a currency with it",
            )),
            None => Err(Refusal::new(
                "its amount can't be read, and --max-money is given",
                "replay it without --max-money",
            )),
        }
    }

    fn count(&mut self, decision: &Decision) {
        if let Decision::Send(replay) = decision {
            self.sent += 1;
            if let Some(amount) = replay.amount {
                let sum = self.money.entry(amount.currency()).or_default();
                *sum = sum.saturating_add(amount.value());
            }
        }
    }

    /// Decides, writes it down, does it.
    async fn act(&mut self, found: &Found, letter: &DeadLetter) -> Result<Told, DeskError> {
        let now = OffsetDateTime::now_utc();
        let prepared = prepare(letter, &self.replays.changes, now);
        let decided = match prepared.and_then(|replay| self.bounded(replay)) {
            Err(refusal) => Decided::unasked(Decision::Refuse(refusal)),
            Ok(replay) => match &letter.job {
                Ok(job) if replay.policy == Policy::FreshId => {
                    self.desk.close_parent(letter, job, replay).await?
                }
                Ok(job) => self.desk.same_id(letter, job, replay).await,
                Err(_) => Decided::unasked(Decision::Send(replay)),
            },
        };
        let told = self.desk.carry_out(found, letter, decided).await?;
        self.count(&told.decision);
        if let (Decision::Send(replay), Some((_, ids))) = (&told.decision, &mut self.canary)
            && self.replays.canary.is_some_and(|canary| self.sent <= canary)
        {
            ids.extend(replay.id.clone());
        }
        Ok(told)
    }

    /// Once the canaries are sent, waits until all of them are captured.
    async fn canary_ended(&mut self) -> Result<(), DeskError> {
        if self.replays.canary.is_none_or(|canary| self.sent < canary) {
            return Ok(());
        }
        let Some((mut results, mut ids)) = self.canary.take() else { return Ok(()) };
        let until = Instant::now() + CANARY_WAIT;
        while !ids.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let result = tokio::select! {
                () = self.desk.stop.cancelled() => return Err(DeskError::Interrupted),
                result = results.next(left) => result,
            };
            let Some(result) = result else {
                let without: Vec<&str> = ids.iter().map(String::as_str).collect();
                let (without, waited) = (without.join(", "), CANARY_WAIT.as_secs());
                return Err(DeskError::Canary(format!("no result of {without} in {waited} s")));
            };
            let text = |name: &str| result[name].as_str().unwrap_or_default();
            let id = text("captureRequestId");
            if !ids.remove(id) {
                continue;
            }
            if text("status") != "CAPTURED" {
                let (status, code) = (text("status"), text("resultCode"));
                return Err(DeskError::Canary(format!("{id} came to {status} {code}")));
            }
        }
        Ok(())
    }
}
