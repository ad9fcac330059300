//! The local line: jobs of one payment in one worker stand behind each other instead of asking Redis all at once, the
//! oldest first. Whoever ends its turn hands it, and with it the lease, to the next.
//!
//! Bounded in share of the prefetch, places for one payment, and time; while jobs of other payments want the prefetch, a
//! payment has but few places. A job that finds none is deferred until the line will be through, those counted in that were
//! deferred before and will be back by then: so a payment with a thousand jobs neither spins nor stands still. A job that
//! was deferred is older than those that came since, and goes before
//! them: so none starves.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    domain::{forward::CaptureType, job::Job, schedule::fit},
    lease::{Acquired, Claim},
};

/// A payment has at least so many places, if the share of the prefetch allows; else an eighth of the prefetch.
const PAYMENT_MIN: usize = 16;
/// So many jobs of a payment in a row have the lease of this worker while another worker waits for it.
const HANDED_MAX: u32 = 8;
/// How long a turn is taken to last before one was measured: rather too short, for who comes back too early is deferred once
/// more, and while all are away too long nobody captures.
const PACE_FIRST: Duration = Duration::from_millis(10);
/// Deferrals come back so late at times: wait queues are no clocks.
const LATENESS: Duration = Duration::from_millis(100);
/// Deferrals are counted by when they come back, so exactly.
const TICK: Duration = Duration::from_millis(10);
/// Payments that nobody stands for are forgotten at the latest when there are so many.
const SWEEP_MIN: usize = 1024;

/// An explicitly final capture stands so much further behind, in milliseconds: what its publisher
/// published shortly before it may still be on its way to this worker.
const FINAL_LATER_MS: i64 = 60_000;

/// When a job counts as first seen in its payment's line, in epoch milliseconds. No order is
/// promised: a publisher sends the final capture when it has the results of the others.
pub(super) fn counts_as_first_seen_ms(first_seen_ms: i64, job: &Job) -> i64 {
    match job.forwarded.capture_type() {
        Some(CaptureType::Final) => first_seen_ms.saturating_add(FINAL_LATER_MS),
        Some(CaptureType::NonFinal) | None => first_seen_ms,
    }
}

/// The lines of all payments.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Places>>);

struct Places {
    began: Instant,
    waiting: usize,
    waiting_max: usize,
    /// How many have a turn.
    turns: usize,
    /// The most places of a payment, and those it has while others have `crowd` jobs in hand.
    payment_max: usize,
    payment_min: usize,
    crowd: usize,
    delays: Vec<Duration>,
    arrivals: u64,
    payments: HashMap<String, Payment>,
    sweep_at: usize,
}

/// A place in line: when a worker first had the job, then the order of arrival.
type Seat = (i64, u64);

#[derive(Default)]
struct Payment {
    /// Whether somebody has the turn.
    is_taken: bool,
    waiters: BTreeMap<Seat, (Claim, oneshot::Sender<Call>)>,
    /// How many come back when, of those that found no place: ticks since the lines began.
    deferred: BTreeMap<u32, u32>,
    /// How long a turn lasts, lately.
    pace: Option<Duration>,
    turned: Option<Instant>,
}

/// What a waiter is told.
enum Call {
    Turn(Turn, Option<Acquired>),
    Displaced(Duration),
}

/// What came of standing in line.
pub(super) enum Entered {
    /// It is this job's turn; with what came of asking for the lease, if the job before has handed it over.
    Turn(Turn, Option<Acquired>),
    /// There is no place, or it was given up: there may be one after so long.
    Full(Duration),
}

/// A payment's turn, passed on to the next in line when it is dropped.
pub(super) struct Turn {
    line: Line,
    /// Empty once the turn was passed on.
    payment_id: String,
    /// How often the lease was handed over in this worker since it was acquired.
    handed: u32,
}

/// The next in line, called and not yet told.
pub(super) struct Waiter {
    pub(super) claim: Claim,
    ticket: oneshot::Sender<Call>,
}

impl Line {
    /// Lines in which at most half of the prefetch waits, so that one payment does not keep the others out. The delays are
    /// those of deferrals.
    pub(super) fn new(prefetch: u16, delays: Vec<Duration>) -> Self {
        let waiting_max = usize::from(prefetch).div_ceil(2);
        Self(Arc::new(Mutex::new(Places {
            began: Instant::now(),
            waiting: 0,
            waiting_max,
            turns: 0,
            payment_min: usize::from(prefetch / 32).max(1),
            crowd: usize::from(prefetch.div_ceil(2)),
            payment_max: usize::from(prefetch / 8).max(PAYMENT_MIN).min(waiting_max),
            delays,
            arrivals: 0,
            payments: HashMap::new(),
            sweep_at: SWEEP_MIN,
        })))
    }

    /// Waits for the payment's turn, until it is there or `given_up`.
    pub(super) async fn enter(
        &self,
        payment_id: &str,
        claim: &Claim,
        first_seen_ms: i64,
        given_up: impl Future<Output = ()>,
    ) -> Entered {
        let (ticket, called) = oneshot::channel();
        let seat = {
            let mut places = self.lock();
            match places.sit(payment_id, first_seen_ms) {
                Sat::Turn => return Entered::Turn(self.turn(payment_id.to_owned(), 0), None),
                Sat::Full(wait) => return Entered::Full(wait),
                Sat::At(seat) => {
                    places.payment(payment_id).waiters.insert(seat, (claim.clone(), ticket));
                    seat
                }
            }
        };
        let seated = Seated { line: self, payment_id, seat };
        let mut called = std::pin::pin!(called);
        let call = tokio::select! {
            biased;
            call = &mut called => call.ok(),
            () = given_up => {
                // Called in this very moment: the turn, and maybe a lease, must not be lost.
                called.close();
                called.try_recv().ok()
            }
        };
        drop(seated);
        match call {
            Some(Call::Turn(turn, acquired)) => Entered::Turn(turn, acquired),
            Some(Call::Displaced(wait)) => Entered::Full(wait),
            None => Entered::Full(self.lock().defer(payment_id)),
        }
    }

    /// Leave for the one that has the turn to wait for the lease in Redis, within the share of those that wait.
    pub(super) fn wait_outside(&self) -> Option<Outside<'_>> {
        let mut places = self.lock();
        let has_room = places.waiting < places.waiting_max;
        has_room.then(|| {
            places.waiting += 1;
            Outside(self)
        })
    }

    fn turn(&self, payment_id: String, handed: u32) -> Turn {
        Turn { line: self.clone(), payment_id, handed }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Sat {
    Turn,
    At(Seat),
    Full(Duration),
}

impl Places {
    fn payment(&mut self, payment_id: &str) -> &mut Payment {
        if !self.payments.contains_key(payment_id) {
            if self.payments.len() >= self.sweep_at {
                let now = self.began.elapsed();
                self.payments.retain(|_, payment| payment.is_wanted(now));
                self.sweep_at = (self.payments.len() * 2).max(SWEEP_MIN);
            }
            self.payments.insert(payment_id.to_owned(), Payment::default());
        }
        // Was put there just now, if it was not there before.
        self.payments.entry(payment_id.to_owned()).or_default()
    }

    fn sit(&mut self, payment_id: &str, first_seen_ms: i64) -> Sat {
        self.arrivals += 1;
        let seat = (first_seen_ms, self.arrivals);
        let no_share = self.waiting >= self.waiting_max;
        let in_hand = self.turns + self.waiting;
        let (crowd, payment_max, payment_min) = (self.crowd, self.payment_max, self.payment_min);
        let payment = self.payment(payment_id);
        if !payment.is_taken {
            payment.is_taken = true;
            self.turns += 1;
            return Sat::Turn;
        }
        let waiters = payment.waiters.len();
        let is_crowded = in_hand - waiters > crowd;
        let places = if is_crowded { payment_min } else { payment_max };
        if !no_share && waiters < places {
            self.waiting += 1;
            return Sat::At(seat);
        }
        // The oldest stay: the youngest of the line makes room for one that is older.
        let is_older =
            payment.waiters.last_key_value().is_some_and(|(youngest, _)| *youngest > seat);
        for _ in waiters.min(places) - usize::from(is_older)..waiters {
            self.displace(payment_id);
        }
        if !is_older {
            return Sat::Full(self.defer(payment_id));
        }
        self.waiting += 1;
        Sat::At(seat)
    }

    /// Sends the youngest of a line away.
    fn displace(&mut self, payment_id: &str) {
        let Some((_, (_, ticket))) = self.payment(payment_id).waiters.pop_last() else { return };
        self.waiting -= 1;
        let wait = self.defer(payment_id);
        // One that has just given up counts itself out.
        ticket.send(Call::Displaced(wait)).unwrap_or_default();
    }

    /// When the line will be through; counts one more that is deferred until then.
    fn defer(&mut self, payment_id: &str) -> Duration {
        let now = self.began.elapsed();
        let payment = self.payment(payment_id);
        payment.forget_returned(now);
        let wait = payment.through_in(now).saturating_sub(LATENESS);
        let back = ticks(now + fit(&self.delays, wait));
        let at = self.payment(payment_id).deferred.entry(back).or_default();
        *at = at.saturating_add(1);
        wait
    }

    /// The next in line; nobody has the turn if there is none.
    fn next(&mut self, payment_id: &str) -> Option<Waiter> {
        let payment = self.payments.get_mut(payment_id)?;
        let now = Instant::now();
        while let Some((_, (claim, ticket))) = payment.waiters.pop_first() {
            self.waiting -= 1;
            if !ticket.is_closed() {
                payment.turned_at(now);
                return Some(Waiter { claim, ticket });
            }
        }
        None
    }
}

impl Payment {
    fn forget_returned(&mut self, now: Duration) {
        self.deferred = self.deferred.split_off(&ticks(now));
    }

    fn is_wanted(&mut self, now: Duration) -> bool {
        self.forget_returned(now);
        self.is_taken || !self.deferred.is_empty()
    }

    /// How long those in line will take, and those that come back before these are through.
    fn through_in(&self, now: Duration) -> Duration {
        let turns = |jobs: u32| self.pace.unwrap_or(PACE_FIRST).saturating_mul(jobs);
        let waiters = u32::try_from(self.waiters.len()).unwrap_or(u32::MAX);
        let mut through = now + turns(waiters.saturating_add(1));
        for (back, jobs) in &self.deferred {
            if *back > ticks(through) {
                break;
            }
            through += turns(*jobs);
        }
        through.saturating_sub(now)
    }

    /// A moving average: an eighth of what is new.
    fn turned_at(&mut self, now: Instant) {
        if let Some(before) = self.turned.replace(now) {
            let took = now.duration_since(before);
            self.pace = Some(self.pace.map_or(took, |pace| (pace * 7 + took) / 8));
        }
    }
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

/// Gives a place up when it is dropped, if it was not called by then.
struct Seated<'a> {
    line: &'a Line,
    payment_id: &'a str,
    seat: Seat,
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        let mut places = self.line.lock();
        let payment = places.payments.get_mut(self.payment_id);
        if payment.is_some_and(|payment| payment.waiters.remove(&self.seat).is_some()) {
            places.waiting -= 1;
        }
    }
}

/// One that has the turn and waits in Redis.
pub(super) struct Outside<'a>(&'a Line);

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Turn {
    /// Calls the next in line, who must then be told.
    pub(super) fn next(&self) -> Option<Waiter> {
        self.line.lock().next(&self.payment_id)
    }

    /// Whether others of the payment wait for the turn's end, or did lately.
    pub(super) fn is_awaited(&self) -> bool {
        let is_awaited = |payment: &Payment| !payment.waiters.is_empty();
        self.handed > 0 || self.line.lock().payments.get(&self.payment_id).is_some_and(is_awaited)
    }

    /// Whether this worker may keep the lease for one job more although another worker waits for it.
    pub(super) const fn stays(&self) -> bool {
        self.handed < HANDED_MAX
    }

    /// Passes the turn on, with what came of asking for the lease in the waiter's name. `false`: the waiter is gone, and
    /// the turn goes to the next one.
    pub(super) fn pass(mut self, waiter: Waiter, acquired: Option<Acquired>) -> bool {
        let handed = match acquired {
            Some(Acquired::Taken(_)) => self.handed.saturating_add(1),
            _ => 0,
        };
        let turn = self.line.turn(std::mem::take(&mut self.payment_id), handed);
        waiter.ticket.send(Call::Turn(turn, acquired)).is_ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.payment_id.is_empty() {
            return;
        }
        let waiter = {
            let mut places = self.line.lock();
            let waiter = places.next(&self.payment_id);
            if waiter.is_none() {
                let now = places.began.elapsed();
                places.turns -= 1;
                if let Some(payment) = places.payments.get_mut(&self.payment_id) {
                    payment.is_taken = false;
                    payment.turned = None;
                    if !payment.is_wanted(now) {
                        places.payments.remove(&self.payment_id);
                    }
                }
            }
            waiter
        };
        if let Some(Waiter { ticket, .. }) = waiter {
            let turn = self.line.turn(std::mem::take(&mut self.payment_id), 0);
            // A waiter that gave up meanwhile drops the turn, which passes it on once more.
            drop(ticket.send(Call::Turn(turn, None)));
        }
    }
}

#[cfg(test)]
mod tests;
