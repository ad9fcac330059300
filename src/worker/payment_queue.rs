//! The payment queues. Jobs of one payment in one worker wait in a queue, oldest first, instead of
//! all asking Redis for the lease. One job at a time has the payment's slot. When it ends, it hands
//! the slot, and usually the lease, over to the next job.
//!
//! The queues have three limits: their share of the prefetch, the positions of one payment, and the
//! time that a job waits. While jobs of other payments need the prefetch, a payment has only a few
//! positions. A job that gets no position is deferred until the queue is expected to be empty. The
//! estimate includes jobs whose deferral ends before then, so a payment with a thousand jobs
//! neither retries in a tight loop nor stalls. A deferred job is older than the jobs that arrived
//! since and goes before them, so no job starves.

mod estimate;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use self::estimate::Estimate;
use crate::{
    domain::job::{Job, forward::CaptureType},
    lease::{Acquired, Claim},
};

/// A payment has an eighth of the prefetch as positions, and at least this many as far as the
/// queues' share of the prefetch allows.
const POSITIONS_MIN: usize = 16;
/// How many jobs of a payment may have the lease in this worker in a row while another worker waits
/// for it.
const HAND_OVERS_MAX: u32 = 8;
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
pub(super) struct PaymentQueues(Arc<Mutex<Queues>>);

struct Queues {
    began: Instant,
    /// How many jobs wait, in all queues and in Redis.
    waiting: usize,
    waiting_max: usize,
    /// How many jobs have the slot of their payment.
    slots_taken: usize,
    /// The positions of a payment. It has only `positions_min` of them while more than `others_max`
    /// jobs outside its queue have a slot or wait.
    positions_max: usize,
    positions_min: usize,
    others_max: usize,
    /// The possible delays of a deferral, ascending.
    delays: Arc<[Duration]>,
    arrivals: u64,
    by_payment: HashMap<String, PaymentQueue>,
    sweep_at: usize,
}

/// A position: when a worker first received the job, then the order of arrival.
type Position = (i64, u64);

#[derive(Default)]
struct PaymentQueue {
    /// Whether a job has the slot.
    is_slot_taken: bool,
    waiting: BTreeMap<Position, (Claim, oneshot::Sender<Notice>)>,
    estimate: Estimate,
}

/// The message to a waiting job.
enum Notice {
    Slot(Slot, Option<Acquired>),
    Displaced(Duration),
}

/// The result of entering a payment queue.
pub(super) enum Entered {
    /// The job has the slot. If the previous job tried to hand the lease over, this includes the
    /// result.
    Slot(Slot, Option<Acquired>),
    /// The queue is full, or the job gave up its position. There may be a position after this time.
    Full(Duration),
}

/// The slot of a payment. Dropping it passes the slot to the next job in the queue.
pub(super) struct Slot {
    queues: PaymentQueues,
    /// Empty once the slot was handed over.
    payment_id: String,
    /// How often the lease was handed over in this worker since Redis granted it.
    hand_overs: u32,
}

/// The next job of the queue. It was taken from the queue and has not been notified yet.
pub(super) struct NextJob {
    pub(super) claim: Claim,
    notify: oneshot::Sender<Notice>,
}

impl PaymentQueues {
    /// Payment queues in which at most half of the prefetch waits, so that one payment does not
    /// keep the others out. `delays` are the possible delays of a deferral, ascending.
    pub(super) fn new(prefetch: u16, delays: Vec<Duration>) -> Self {
        let waiting_max = usize::from(prefetch).div_ceil(2);
        Self(Arc::new(Mutex::new(Queues {
            began: Instant::now(),
            waiting: 0,
            waiting_max,
            slots_taken: 0,
            positions_min: usize::from(prefetch / 32).max(1),
            others_max: usize::from(prefetch.div_ceil(2)),
            positions_max: usize::from(prefetch / 8).max(POSITIONS_MIN).min(waiting_max),
            delays: delays.into(),
            arrivals: 0,
            by_payment: HashMap::new(),
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
        let (notify, notice) = oneshot::channel();
        let position = {
            let mut queues = self.lock();
            match queues.admit(payment_id, first_seen_ms) {
                Admission::Slot => return Entered::Slot(self.slot(payment_id.to_owned(), 0), None),
                Admission::Full(wait) => return Entered::Full(wait),
                Admission::At(position) => {
                    let waiting = &mut queues.queue(payment_id).waiting;
                    waiting.insert(position, (claim.clone(), notify));
                    position
                }
            }
        };
        let kept = KeptPosition { queues: self, payment_id, position };
        let mut notice = std::pin::pin!(notice);
        let received = tokio::select! {
            biased;
            received = &mut notice => received.ok(),
            () = given_up => {
                // The job may be notified at this moment. The slot, and a lease that came with it,
                // must not be lost.
                notice.close();
                notice.try_recv().ok()
            }
        };
        drop(kept);
        match received {
            Some(Notice::Slot(slot, acquired)) => Entered::Slot(slot, acquired),
            Some(Notice::Displaced(wait)) => Entered::Full(wait),
            None => Entered::Full(self.lock().defer(payment_id)),
        }
    }

    /// Permission for the job with the slot to wait for the lease in Redis. It counts towards the
    /// limit of waiting jobs; `None` if that is reached.
    pub(super) fn wait_in_redis(&self) -> Option<WaitInRedis<'_>> {
        let mut queues = self.lock();
        let has_room = queues.waiting < queues.waiting_max;
        has_room.then(|| {
            queues.waiting += 1;
            WaitInRedis(self)
        })
    }

    fn slot(&self, payment_id: String, hand_overs: u32) -> Slot {
        Slot { queues: self.clone(), payment_id, hand_overs }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a job gets that enters the queue of its payment.
enum Admission {
    Slot,
    At(Position),
    Full(Duration),
}

impl Queues {
    fn queue(&mut self, payment_id: &str) -> &mut PaymentQueue {
        if !self.by_payment.contains_key(payment_id) {
            if self.by_payment.len() >= self.sweep_at {
                let now = self.began.elapsed();
                self.by_payment.retain(|_, queue| queue.is_in_use(now));
                self.sweep_at = (self.by_payment.len() * 2).max(SWEEP_MIN);
            }
            self.by_payment.insert(payment_id.to_owned(), PaymentQueue::default());
        }
        // The entry exists: it was inserted above if it was missing.
        self.by_payment.entry(payment_id.to_owned()).or_default()
    }

    fn admit(&mut self, payment_id: &str, first_seen_ms: i64) -> Admission {
        self.arrivals += 1;
        let position = (first_seen_ms, self.arrivals);
        let no_share = self.waiting >= self.waiting_max;
        let in_flight = self.slots_taken + self.waiting;
        let Self { others_max, positions_max, positions_min, .. } = *self;
        let queue = self.queue(payment_id);
        if !queue.is_slot_taken {
            queue.is_slot_taken = true;
            self.slots_taken += 1;
            return Admission::Slot;
        }
        let waiting = queue.waiting.len();
        let others_need_room = in_flight - waiting > others_max;
        let positions = if others_need_room { positions_min } else { positions_max };
        if !no_share && waiting < positions {
            self.waiting += 1;
            return Admission::At(position);
        }
        // The oldest jobs stay. The youngest makes room for a job that is older.
        let youngest = queue.waiting.last_key_value().map(|(youngest, _)| *youngest);
        let is_older = youngest.is_some_and(|youngest| youngest > position);
        for _ in waiting.min(positions) - usize::from(is_older)..waiting {
            self.displace(payment_id);
        }
        if !is_older {
            return Admission::Full(self.defer(payment_id));
        }
        self.waiting += 1;
        Admission::At(position)
    }

    /// Removes the youngest job from a payment queue, and notifies it that it is deferred.
    fn displace(&mut self, payment_id: &str) {
        let Some((_, (_, notify))) = self.queue(payment_id).waiting.pop_last() else { return };
        self.waiting -= 1;
        let wait = self.defer(payment_id);
        // The send fails if the job has just given up. It is deferred then too.
        notify.send(Notice::Displaced(wait)).unwrap_or_default();
    }

    /// The time until the queue is expected to be empty. Counts one more job that is deferred until
    /// then.
    fn defer(&mut self, payment_id: &str) -> Duration {
        let (now, delays) = (self.began.elapsed(), Arc::clone(&self.delays));
        let queue = self.queue(payment_id);
        queue.estimate.defer(queue.waiting.len(), &delays, now)
    }

    /// Takes the next waiting job from the queue; `None` if there is none.
    fn take_next(&mut self, payment_id: &str) -> Option<NextJob> {
        let queue = self.by_payment.get_mut(payment_id)?;
        let now = Instant::now();
        while let Some((_, (claim, notify))) = queue.waiting.pop_first() {
            self.waiting -= 1;
            if !notify.is_closed() {
                queue.estimate.slot_passed(now);
                return Some(NextJob { claim, notify });
            }
        }
        None
    }

    /// Records that no job has the slot of a payment, because none waits for it.
    fn free_slot(&mut self, payment_id: &str) {
        let now = self.began.elapsed();
        self.slots_taken -= 1;
        if let Some(queue) = self.by_payment.get_mut(payment_id) {
            queue.is_slot_taken = false;
            queue.estimate.slot_freed();
            if !queue.is_in_use(now) {
                self.by_payment.remove(payment_id);
            }
        }
    }
}

impl PaymentQueue {
    fn is_in_use(&mut self, now: Duration) -> bool {
        let expects_jobs = self.estimate.expects_jobs(now);
        self.is_slot_taken || expects_jobs
    }
}

/// The position of a waiting job. Dropping it removes the job from the queue, unless the job was
/// notified before.
struct KeptPosition<'a> {
    queues: &'a PaymentQueues,
    payment_id: &'a str,
    position: Position,
}

impl Drop for KeptPosition<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        let queue = queues.by_payment.get_mut(self.payment_id);
        if queue.is_some_and(|queue| queue.waiting.remove(&self.position).is_some()) {
            queues.waiting -= 1;
        }
    }
}

/// Counts the job with the slot as waiting while it waits for the lease in Redis.
pub(super) struct WaitInRedis<'a>(&'a PaymentQueues);

impl Drop for WaitInRedis<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Slot {
    /// Takes the next job from the queue. The caller must then [`hand_over`](Self::hand_over) the
    /// slot to it.
    pub(super) fn take_next(&self) -> Option<NextJob> {
        self.queues.lock().take_next(&self.payment_id)
    }

    /// Whether other jobs of the payment wait for the slot, or this job got the lease by hand-over.
    pub(super) fn is_awaited(&self) -> bool {
        let is_awaited = |queue: &PaymentQueue| !queue.waiting.is_empty();
        let queues = self.queues.lock();
        self.hand_overs > 0 || queues.by_payment.get(&self.payment_id).is_some_and(is_awaited)
    }

    /// Whether this worker may keep the lease for one more job although another worker waits for
    /// it.
    pub(super) const fn may_keep_lease(&self) -> bool {
        self.hand_overs < HAND_OVERS_MAX
    }

    /// Hands the slot over to the waiting job, with the result of acquiring the lease on its
    /// behalf. Returns `false` if the job has given up; the slot then goes to the next job.
    pub(super) fn hand_over(mut self, next: NextJob, acquired: Option<Acquired>) -> bool {
        let hand_overs = match acquired {
            Some(Acquired::Taken(_)) => self.hand_overs.saturating_add(1),
            _ => 0,
        };
        let slot = self.queues.slot(std::mem::take(&mut self.payment_id), hand_overs);
        next.notify.send(Notice::Slot(slot, acquired)).is_ok()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.payment_id.is_empty() {
            return;
        }
        let next = {
            let mut queues = self.queues.lock();
            let next = queues.take_next(&self.payment_id);
            if next.is_none() {
                queues.free_slot(&self.payment_id);
            }
            next
        };
        if let Some(NextJob { notify, .. }) = next {
            let slot = self.queues.slot(std::mem::take(&mut self.payment_id), 0);
            // If the job gave up meanwhile, the slot is dropped and so passed on once more.
            drop(notify.send(Notice::Slot(slot, None)));
        }
    }
}

#[cfg(test)]
mod tests;
