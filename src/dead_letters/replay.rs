//! Replays dead letters: sends their jobs back to the queue of jobs, as the policy of their class
//! allows, and within the limits that the operator set.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    Captures, Desk, DeskError, Filter, Flow,
    decide::{Decided, Mode, ReplayReport},
};
use crate::{
    broker::{BrowsedMessage, Results},
    domain::{
        capture::class::Class,
        money::{Currency, Money},
        replay::{
            Changes, Replay,
            dead_letter::DeadLetter,
            decision::Decision,
            prepare,
            refusal::{LimitRefusal, ReplayRefusal},
        },
    },
};

/// How long a replay waits until all canaries are captured.
const CANARY_WAIT: Duration = Duration::from_secs(60);

/// Which dead letters a command replays, and within which limits.
#[derive(Clone, Debug, Default)]
pub struct Replays {
    /// Selects the dead letters.
    pub filter: Filter,
    /// What the operator changes in the jobs.
    pub changes: Changes,
    /// The most dead letters that are visited.
    pub limit: Option<u64>,
    /// The most of each class: as many as the operator confirmed. A class that is absent has none.
    pub caps: Option<BTreeMap<Class, u64>>,
    /// The least time between two dead letters.
    pub every: Duration,
    /// How many are sent first. The rest is sent only after all of these are captured.
    pub canary: Option<u64>,
    /// The most money that is sent in each currency, in its smallest unit. If it names a currency,
    /// other currencies are refused. Copies of one capture count once.
    pub max_money: BTreeMap<Currency, u64>,
}

/// The progress of a replay towards its limits.
struct Run<'a> {
    desk: &'a Desk,
    replays: &'a Replays,
    taken: u64,
    taken_of: BTreeMap<Class, u64>,
    sent: u64,
    next: Instant,
    /// The captures that were sent, for [`Replays::max_money`].
    captures: Captures,
    canary: Option<(Results, BTreeSet<String>)>,
}

impl Desk {
    /// Reports what a replay would do with each dead letter, as the gateway replies now. Nothing is
    /// sent, and nothing is recorded.
    ///
    /// # Errors
    /// The command ended early.
    pub async fn plan(
        &self,
        replays: &Replays,
        mut report: impl FnMut(&DeadLetter, &ReplayReport),
    ) -> Result<(), DeskError> {
        let mut run = Run::new(self, replays);
        for class in replays.filter.classes() {
            let visit = async |_: &BrowsedMessage, dead_letter: DeadLetter| {
                if run.is_enough(dead_letter.class) {
                    return Ok(Flow::Stop);
                }
                run.wait().await?;
                let planned = run.decide(&dead_letter, Mode::Plan).await?.report;
                run.count(&planned.decision);
                report(&dead_letter, &planned);
                Ok(Flow::Keep)
            };
            self.walk(class, &replays.filter, visit).await?;
            if replays.limit.is_some_and(|limit| run.taken >= limit) {
                break;
            }
        }
        Ok(())
    }

    /// Replays dead letters. Each one is recorded in the audit first. `report` is called for each
    /// one after it is done.
    ///
    /// # Errors
    /// The command ended early. Dead letters that were not reported are unchanged, except
    /// perhaps the one that was being replayed. Running the command again is safe.
    pub async fn replay(
        &self,
        replays: &Replays,
        mut report: impl FnMut(&DeadLetter, &ReplayReport),
    ) -> Result<(), DeskError> {
        let mut run = Run::new(self, replays);
        if replays.canary.is_some() {
            let results = Results::subscribe(&self.session).await;
            let results = results.map_err(|error| {
                DeskError::Canary(format!("cannot subscribe to results: {error}"))
            })?;
            run.canary = Some((results, BTreeSet::new()));
        }
        for class in replays.filter.classes() {
            let visit = async |found: &BrowsedMessage, dead_letter: DeadLetter| {
                if run.is_enough(dead_letter.class) {
                    return Ok(Flow::Stop);
                }
                run.canary_ended().await?;
                run.wait().await?;
                let done = run.act(found, &dead_letter).await?;
                report(&dead_letter, &done);
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
            captures: Captures::default(),
            canary: None,
        }
    }

    /// Whether a limit is reached. If not, counts one more dead letter of the class.
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

    /// Waits for the next time that the rate allows.
    async fn wait(&mut self) -> Result<(), DeskError> {
        tokio::select! {
            () = self.desk.stop.cancelled() => return Err(DeskError::Interrupted),
            () = tokio::time::sleep_until(self.next) => {}
        }
        self.next = Instant::now() + self.replays.every;
        Ok(())
    }

    /// Decides about a dead letter: by its policy, by the operator's limits, then by the evidence.
    async fn decide(&self, dead_letter: &DeadLetter, mode: Mode) -> Result<Decided, DeskError> {
        let prepared = prepare(dead_letter, &self.replays.changes, OffsetDateTime::now_utc());
        let prepared = prepared.map_err(ReplayRefusal::from).and_then(|replay| {
            self.check_limits(&replay)?;
            Ok(replay)
        });
        self.desk.decide(dead_letter, prepared, mode).await
    }

    /// Refuses a replay that exceeds the operator's limits.
    fn check_limits(&self, replay: &Replay) -> Result<(), LimitRefusal> {
        let is_canary = self.replays.canary.is_some_and(|canary| self.sent < canary);
        if is_canary && replay.id.is_none() {
            return Err(LimitRefusal::CanaryWithoutId);
        }
        let max_money = &self.replays.max_money;
        if max_money.is_empty() {
            return Ok(());
        }
        let max_of = |amount: Money| max_money.get(&amount.currency()).copied().unwrap_or_default();
        let id = replay.id.as_deref();
        match replay.amount {
            Some(amount) if self.captures.is_within(id, amount, max_of(amount)) => Ok(()),
            Some(amount) => Err(LimitRefusal::OverMaxMoney(amount)),
            None => Err(LimitRefusal::AmountUnreadable),
        }
    }

    fn count(&mut self, decision: &Decision) {
        if let Decision::Send(replay) = decision {
            self.sent += 1;
            if !self.replays.max_money.is_empty() {
                self.captures.add(replay.id.as_deref(), replay.amount);
            }
        }
    }

    /// Decides on a dead letter, records the decision in the audit, and acts on it.
    async fn act(
        &mut self,
        found: &BrowsedMessage,
        dead_letter: &DeadLetter,
    ) -> Result<ReplayReport, DeskError> {
        let decided = self.decide(dead_letter, Mode::Act).await?;
        let report = self.desk.carry_out(found, dead_letter, decided).await?;
        self.count(&report.decision);
        if let (Decision::Send(replay), Some((_, ids))) = (&report.decision, &mut self.canary)
            && self.replays.canary.is_some_and(|canary| self.sent <= canary)
        {
            ids.extend(replay.id.clone());
        }
        Ok(report)
    }

    /// After the canaries are sent, waits until all of them are captured.
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
                return Err(DeskError::Canary(format!(
                    "no result for {without} within {waited} s"
                )));
            };
            let text = |name: &str| result[name].as_str().unwrap_or_default();
            let id = text("captureRequestId");
            if !ids.remove(id) {
                continue;
            }
            if text("status") != "CAPTURED" {
                let (status, code) = (text("status"), text("resultCode"));
                return Err(DeskError::Canary(format!("{id} ended as {status} {code}")));
            }
        }
        Ok(())
    }
}
