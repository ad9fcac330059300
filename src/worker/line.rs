//! The payment queues. Jobs of one payment in one worker wait in a queue, oldest first, instead of
//! all asking Redis for the lease. One job at a time has the payment's slot. When it ends, it
//! passes the slot, and usually the lease, to the next job.
//!
//! The queues have three limits: their share of the prefetch, the positions of one payment, and the
//! time that a job waits. While jobs of other payments need the prefetch, a payment has only a few
//! positions. A job that gets no position is deferred until the queue is expected to be empty. The
//! estimate includes jobs whose deferral ends before then, so a payment with a thousand jobs
//! neither retries in a tight loop nor stalls. A deferred job is older than the jobs that arrived
//! since and goes before them, so no job starves.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    domain::{
        job::{Job, forward::CaptureType},
        settlement::schedule::fit,
    },
    lease::{Acquired, Claim},
};

/// A payment has an eighth of the prefetch as positions, and at least this many as far as the
/// queues' share of the prefetch allows.
const PAYMENT_MIN: usize = 16;
/// How many jobs of a payment may have the lease in this worker in a row while another worker waits
/// for it.
const HANDED_MAX: u32 = 8;
/// The assumed time that a job has the slot, before one was measured. Too short is better than too
/// long: a job that comes back too early is only deferred again, but while all jobs are deferred
/// for too long, nothing is captured.
const PACE_FIRST: Duration = Duration::from_millis(10);
/// How late a deferred job may come back: RabbitMQ does not expire messages at the exact time.
/// Deferrals are shortened by this.
const LATENESS: Duration = Duration::from_millis(100);
/// The resolution at which the return times of deferred jobs are counted.
const TICK: Duration = Duration::from_millis(10);
/// Unused payments are removed when there are this many, or twice as many as the last removal left.
const SWEEP_MIN: usize = 1024;

/// An explicitly final capture counts as first seen this many milliseconds later. Captures that its
/// publisher published shortly before it may still be on their way to this worker.
const FINAL_LATER_MS: i64 = 60_000;

/// The time by which a job is ordered in its payment queue, in epoch milliseconds. The order is not
/// guaranteed: a publisher must send the final capture after it has the results of the others.
pub(super) fn counts_as_first_seen_ms(first_seen_ms: i64, job: &Job) -> i64 {
    match job.forwarded.capture_type() {
        Some(CaptureType::Final) => first_seen_ms.saturating_add(FINAL_LATER_MS),
        Some(CaptureType::NonFinal) | None => first_seen_ms,
    }
}

/// The payment queues of one worker. Cheap to clone.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Places>>);

struct Places {
    began: Instant,
    waiting: usize,
    waiting_max: usize,
    /// How many jobs have the slot of their payment.
    turns: usize,
    /// The positions of a payment. It has only `payment_min` of them while more than `crowd` jobs
    /// outside its queue have a slot or wait.
    payment_max: usize,
    payment_min: usize,
    crowd: usize,
    delays: Vec<Duration>,
    arrivals: u64,
    payments: HashMap<String, Payment>,
    sweep_at: usize,
}

/// A position: when a worker first received the job, then the order of arrival.
type Seat = (i64, u64);

#[derive(Default)]
struct Payment {
    /// Whether a job has the slot.
    is_taken: bool,
    waiters: BTreeMap<Seat, (Claim, oneshot::Sender<Call>)>,
    /// How many deferred jobs come back at which time, in ticks since `Places::began`.
    deferred: BTreeMap<u32, u32>,
    /// The moving average of the time that a job has the slot.
    pace: Option<Duration>,
    turned: Option<Instant>,
}

/// The message to a waiting job.
enum Call {
    Turn(Turn, Option<Acquired>),
    Displaced(Duration),
}

/// The result of entering a payment queue.
pub(super) enum Entered {
    /// The job has the slot. If the previous job tried to hand the lease over, this includes the
    /// result.
    Turn(Turn, Option<Acquired>),
    /// The queue is full, or the job gave up its position. There may be a position after this time.
    Full(Duration),
}

/// The slot of a payment. Dropping it passes the slot to the next job in the queue.
pub(super) struct Turn {
    line: Line,
    /// Empty once the slot was passed on.
    payment_id: String,
    /// How often the lease was handed over in this worker since Redis granted it.
    handed: u32,
}

/// The next job of the queue. It was taken from the queue and has not been notified yet.
pub(super) struct Waiter {
    pub(super) claim: Claim,
    ticket: oneshot::Sender<Call>,
}

impl Line {
    /// Payment queues in which at most half of the prefetch waits, so that one payment does not
    /// keep the others out. `delays` are the possible delays of a deferral, ascending.
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

    /// Waits for the payment's slot until the job gets it or `given_up` completes.
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
                // The job may be called at this moment. The slot, and a lease that came with it,
                // must not be lost.
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

    /// Permission for the job with the slot to wait for the lease in Redis. It counts towards the
    /// limit of waiting jobs; `None` if that is reached.
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
        // The entry exists: it was inserted above if it was missing.
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
        // The oldest jobs stay. The youngest makes room for a job that is older.
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

    /// Removes the youngest job from a payment queue, and tells it to be deferred.
    fn displace(&mut self, payment_id: &str) {
        let Some((_, (_, ticket))) = self.payment(payment_id).waiters.pop_last() else { return };
        self.waiting -= 1;
        let wait = self.defer(payment_id);
        // The send fails if the job has just given up. It is deferred then too.
        ticket.send(Call::Displaced(wait)).unwrap_or_default();
    }

    /// The time until the queue is expected to be empty. Counts one more job that is deferred until
    /// then.
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

    /// Takes the next waiting job from the queue; `None` if there is none.
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

    /// The expected time for the waiting jobs, and for the deferred jobs that come back before
    /// those have ended.
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

    /// Updates the moving average of the time that a job has the slot. The new value weighs an
    /// eighth.
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

/// The position of a waiting job. Dropping it removes the job from the queue, unless the job was
/// called before.
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

/// Counts the job with the slot as waiting while it waits for the lease in Redis.
pub(super) struct Outside<'a>(&'a Line);

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Turn {
    /// Takes the next job from the queue. The caller must then [`pass`](Self::pass) the slot to it.
    pub(super) fn next(&self) -> Option<Waiter> {
        self.line.lock().next(&self.payment_id)
    }

    /// Whether other jobs of the payment wait for the slot, or this job got the lease by hand-over.
    pub(super) fn is_awaited(&self) -> bool {
        let is_awaited = |payment: &Payment| !payment.waiters.is_empty();
        self.handed > 0 || self.line.lock().payments.get(&self.payment_id).is_some_and(is_awaited)
    }

    /// Whether this worker may keep the lease for one more job although another worker waits for
    /// it.
    pub(super) const fn stays(&self) -> bool {
        self.handed < HANDED_MAX
    }

    /// Passes the slot to the waiting job, with the result of acquiring the lease on its behalf.
    /// Returns `false` if the job has given up; the slot then goes to the next job.
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
            // If the waiter gave up meanwhile, the slot is dropped and so passed on once more.
            drop(ticket.send(Call::Turn(turn, None)));
        }
    }
}

#[cfg(test)]
mod tests;
