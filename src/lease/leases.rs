//! The interface to the rest of the program: acquire, renew, release and hand over leases.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::redis::{
    AcquireReply, FailoverGuard, RedisSupervisor, ReleaseReply, RenewReply, Scripts,
};
use super::{
    Acquired, BadUrl, Claim, Lease, LeaseTimes, Owner, RedisOptions, Released, Renewed, Role,
    Unavailable,
    record::{self, Recording},
};
use crate::domain::{
    capture::outcome::{FinalOutcome, Recorded, Release},
    job::Job,
};

/// Acquires, renews and releases leases.
#[derive(Clone)]
pub struct Leases {
    redis: Arc<RedisSupervisor>,
    scripts: Arc<Scripts>,
    owner: Owner,
    times: LeaseTimes,
}

/// When a call began, and the generation of the connection at that time.
type Asked = (Instant, Option<u64>);

impl Leases {
    /// Prepares leases at this Redis. [`Leases::keep_connected`] must run to connect.
    ///
    /// # Errors
    /// `redis.url` is invalid.
    pub fn new(
        options: &RedisOptions,
        owner: Owner,
        role: Role,
        times: LeaseTimes,
    ) -> Result<Self, BadUrl> {
        let guard = FailoverGuard::new(&owner, role, times.longest_call);
        Ok(Self {
            redis: RedisSupervisor::new(options, owner.clone(), guard)?,
            scripts: Arc::new(Scripts::new(&times)),
            owner,
            times,
        })
    }

    /// A new claim for a job. `posts`: a capture is sent as soon as the lease is acquired.
    #[must_use]
    pub fn claim(&self, job: &Job, posts: bool) -> Claim {
        Claim::of(&self.owner, job, posts)
    }

    /// Connects, and connects again after each failure, until the token is cancelled.
    pub async fn keep_connected(&self, stop: CancellationToken) {
        self.redis.keep_connected(stop).await;
    }

    /// Why no lease is granted although Redis responds: it may have lost leases.
    pub async fn withheld(&self) -> Option<&'static str> {
        self.redis.withheld().await
    }

    /// The policy by which Redis may evict keys when its memory is full. `None` if it is
    /// `noeviction`, if it is unknown, or before the first connection.
    #[must_use]
    pub fn eviction_policy(&self) -> Option<String> {
        self.redis.eviction_policy()
    }

    /// Whether Redis is connected and gives leases; notifies of changes.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.redis.up()
    }

    /// Why Redis gives no leases, as a sentence for operators.
    #[must_use]
    pub fn unavailable_reason(&self) -> String {
        self.redis.unavailable_reason()
    }

    /// How long an id in doubt blocks the payment (`lease.hold_in_doubt`).
    #[must_use]
    pub const fn in_doubt_block(&self) -> Duration {
        self.times.in_doubt_block
    }

    /// Acquires the lease of a payment. `waits`: if another worker has it, join the waiting list;
    /// the caller then asks again with the same claim.
    ///
    /// # Errors
    /// Redis is unavailable. It is unknown whether the lease was acquired; it is safe to ask again
    /// with the same claim.
    pub async fn acquire(&self, claim: &Claim, waits: bool) -> Result<Acquired, Unavailable> {
        if let Some(why) = self.redis.withheld().await {
            return Err(Unavailable::new(why));
        }
        let asked = self.asked_now();
        let reply = self.redis.run(&self.scripts.acquire(claim, waits)).await?;
        self.acquired(reply, claim, asked)
    }

    /// Rolls back an acquisition: one whose result was lost, or one in the waiting list that is no
    /// longer needed.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn roll_back(&self, claim: &Claim) -> Result<(), Unavailable> {
        self.release(&Lease::none(claim), &Release::RollBackAlways).await.map(drop)
    }

    /// Records what an inquiry proved about an id that has a recorded outcome already: a capture
    /// overrides a failure.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record(&self, claim: &Claim, outcome: FinalOutcome) -> Result<(), Unavailable> {
        self.release(&Lease::none(claim), &Release::Final(outcome)).await.map(drop)
    }

    /// Records that a fresh id replaces an id with a recorded failure, and returns the recorded
    /// outcome. If there is none, or a capture, nothing was written and no fresh id may be sent.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn replace(
        &self,
        claim: &Claim,
        outcome: &FinalOutcome,
    ) -> Result<Option<Recorded>, Unavailable> {
        let recording = Recording::replaced(claim, outcome)?;
        let call = self.scripts.release(&Lease::none(claim), &recording);
        released(claim, self.redis.run(&call).await?).map(|released| released.recorded)
    }

    /// Gives the lease its full time again before a call. `posts`: the call is a capture whose
    /// intent was not recorded when the lease was acquired, so the in-doubt block and the sent
    /// marker are written. `denied_at_replay`: the number of replays at which an inquiry has just
    /// shown that there is no such capture.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn renew(
        &self,
        lease: &mut Lease,
        posts: bool,
        denied_at_replay: Option<u32>,
    ) -> Result<Renewed, Unavailable> {
        let (asked, generation) = self.asked_now();
        let call = self.scripts.renew(&lease.claim, posts, denied_at_replay);
        let RenewReply(renewed) = self.redis.run(&call).await?;
        lease.until = asked + self.times.ttl;
        lease.generation = generation;
        Ok(renewed)
    }

    /// Whether the connection is still the one on which the lease was acquired or renewed. If not,
    /// the lease may be lost: renew it before a call.
    #[must_use]
    pub fn is_current(&self, lease: &Lease) -> bool {
        lease.generation.is_some() && lease.generation == self.redis.generation()
    }

    /// Releases the lease and passes it to the first of the waiting list.
    ///
    /// # Errors
    /// Redis is unavailable: the lease expires after its time to live.
    pub async fn release(&self, lease: &Lease, release: &Release) -> Result<Released, Unavailable> {
        let recording = Recording::of(&lease.claim, release)?;
        let call = self.scripts.release(lease, &recording);
        released(&lease.claim, self.redis.run(&call).await?)
    }

    /// Releases the lease and acquires it for the next job of the same payment, in one step.
    /// `stays`: even if another worker waits for it; otherwise that worker gets it first, and the
    /// next job joins the end of the waiting list.
    ///
    /// # Errors
    /// Redis is unavailable: it is unknown whether the lease was released or acquired.
    pub async fn hand_over(
        &self,
        lease: &Lease,
        release: &Release,
        next: &Claim,
        stays: bool,
    ) -> Result<(Released, Acquired), Unavailable> {
        let asked = self.asked_now();
        let recording = Recording::of(&lease.claim, release)?;
        let call = self.scripts.hand_over(lease, &recording, next, stays);
        let (release, acquire) = self.redis.run(&call).await?;
        Ok((released(&lease.claim, release)?, self.acquired(acquire, next, asked)?))
    }

    pub(super) const fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(super) fn redis(&self) -> &RedisSupervisor {
        &self.redis
    }

    fn asked_now(&self) -> Asked {
        (Instant::now(), self.redis.generation())
    }

    fn acquired(
        &self,
        reply: AcquireReply,
        claim: &Claim,
        (asked, generation): Asked,
    ) -> Result<Acquired, Unavailable> {
        Ok(match reply {
            AcquireReply::Taken { marker, block_left_ms } => Acquired::Taken(Lease {
                claim: claim.clone(),
                marker: marker.map(|text| record::read_marker(&text, claim.amount())),
                block_left_ms,
                taken: asked,
                until: asked + self.times.ttl,
                generation,
            }),
            AcquireReply::Recorded(record) => Acquired::Recorded(record::read(&record)?.1),
            AcquireReply::Replaced => Acquired::Replaced,
            AcquireReply::Held { marked, position } => Acquired::Held { position, marked },
            AcquireReply::Blocked { marked } => Acquired::Blocked { marked },
        })
    }
}

fn released(claim: &Claim, reply: ReleaseReply) -> Result<Released, Unavailable> {
    let ReleaseReply { kept, found } = reply;
    let recorded = found.map(|found| record::for_claim(claim, &found)).transpose()?;
    Ok(Released { kept, recorded })
}
