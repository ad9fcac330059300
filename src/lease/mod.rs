//! The lease and the in-doubt block of a payment, in Redis. Capture calls of one payment never run
//! at the same time, and while one capture is in doubt, no other capture of the payment begins.
//!
//! The keys are listed at `claim::Keys`. The owner's key `:server` names the server at which the
//! leases are valid (see `guard`).
//!
//! The lease only orders captures; the idempotency key protects the money. This module does not
//! decide what an outcome means.

mod address;
mod claim;
mod eviction;
mod guard;
mod held;
mod inspect;
mod link;
mod outage;
mod probe;
mod record;
mod target;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Script, ScriptInvocation};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::{
    address::{BadUrl, RedisOptions, SentinelLogin, check_url, without_credentials},
    claim::{Claim, Owner},
    held::Lease,
    inspect::{Hold, Inspection},
};
use self::{guard::Guard, link::Link};
use crate::domain::{
    capture::outcome::{Fate, Recorded, Release},
    job::Job,
};

/// How long a lease that was passed to the first of the waiting list stays reserved for it. It is
/// many times the interval at which waiting workers ask.
const GRANT: Duration = Duration::from_millis(500);
/// How long a replaced id is remembered: longer than a copy of its dead letter can wait for a
/// replay.
const REPLACED: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Who acquires leases. It decides what happens when Redis may have lost leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A worker waits until all calls under way have ended, then records the new server.
    Worker,
    /// A command never records a server, and acquires no lease unless a worker has recorded it.
    Command,
}

/// The times to live of leases and of what they leave behind in Redis.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A lease that is not released.
    pub ttl: Duration,
    /// The in-doubt block, counted from the last time that the id was sent.
    pub hold_in_doubt: Duration,
    /// A recorded outcome, and a sent marker.
    pub remember: Duration,
    /// The longest duration of a capture call. When Redis may have lost leases, no lease is
    /// acquired for this time.
    pub longest_call: Duration,
}

/// Acquires, renews and releases leases.
#[derive(Clone)]
pub struct Leases {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    owner: Owner,
    times: LeaseTimes,
}

struct Scripts {
    acquire: Script,
    renew: Script,
    release: Script,
    hand_over: Script,
}

/// The result of trying to acquire a lease.
#[derive(Debug)]
pub enum Acquired {
    /// The lease was acquired.
    Taken(Lease),
    /// The id has a recorded outcome: no call is needed.
    Known(Fate),
    /// A fresh id replaced this one, for another amount. This id is never posted again.
    Replaced,
    /// Another capture of the payment is under way.
    Held {
        /// How many workers wait before this one; `None` if it is not in the waiting list.
        place: Option<u32>,
        /// Whether an earlier acquisition wrote a sent marker for this id.
        marked: bool,
    },
    /// Another id of the payment is in doubt, and blocks the payment.
    OnHold {
        /// Whether an earlier acquisition wrote a sent marker for this id.
        marked: bool,
    },
}

/// Redis did not respond, refused a command, or gives no leases at present; with the reason.
#[derive(Debug, thiserror::Error)]
#[error("Redis unavailable: {0}")]
pub struct Away(String);

/// The result of renewing a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease is still ours, for its full time.
    Kept,
    /// The lease is lost: begin no call.
    Lost,
    /// The id has a recorded outcome by now, which the release returns: begin no call.
    Recorded,
}

/// The result of releasing a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether the lease was still ours.
    pub kept: bool,
    /// The outcome of the id that was recorded before.
    pub recorded: Option<Recorded>,
}

impl Away {
    /// The reason alone, such as for a line that already names Redis.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }
}

/// What `take` in `common.lua` returns: verb, detail, 1 if the id has a sent marker, the remaining
/// milliseconds of the in-doubt block, the position in the waiting list.
type Taken = (String, String, i64, i64, i64);

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("common.lua"), include_str!($file)))
    };
}

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
        let scripts = Scripts {
            acquire: script!("acquire.lua"),
            renew: script!("renew.lua"),
            release: script!("release.lua"),
            hand_over: script!("hand_over.lua"),
        };
        Ok(Self {
            link: Link::new(options, owner.clone(), Guard::new(&owner, role, times.longest_call))?,
            scripts: Arc::new(scripts),
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
        self.link.watch(stop).await;
    }

    /// Why no lease is granted although Redis responds: it may have lost leases.
    pub async fn withheld(&self) -> Option<&'static str> {
        self.link.withholds().await
    }

    /// The policy by which Redis may evict keys when its memory is full. `None` if it is
    /// `noeviction`, if it is unknown, or before the first connection.
    #[must_use]
    pub fn eviction_policy(&self) -> Option<String> {
        self.link.eviction_policy()
    }

    /// Whether Redis is connected and gives leases; notifies of changes.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.link.up()
    }

    /// Why Redis gives no leases, as a sentence for operators.
    #[must_use]
    pub fn absence(&self) -> String {
        self.link.absence()
    }

    /// How long an id in doubt blocks the payment (`lease.hold_in_doubt`).
    #[must_use]
    pub const fn hold_in_doubt(&self) -> Duration {
        self.times.hold_in_doubt
    }

    /// Acquires the lease of a payment. `waits`: if another worker has it, join the waiting list;
    /// the caller then asks again with the same claim.
    ///
    /// # Errors
    /// Redis is unavailable. It is unknown whether the lease was acquired; it is safe to ask again
    /// with the same claim.
    pub async fn acquire(&self, claim: &Claim, waits: bool) -> Result<Acquired, Away> {
        if let Some(why) = self.link.withholds().await {
            return Err(Away(why.to_owned()));
        }
        let asked = (Instant::now(), self.link.epoch());
        let mut call = self.call(&self.scripts.acquire, claim);
        call.arg(i64::from(claim.posts())).arg(i64::from(waits));
        let taken = self.run(&call).await?;
        self.acquired(taken, claim, asked)
    }

    /// Rolls back an acquisition: one whose result was lost, or one in the waiting list that is no
    /// longer needed.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn forget(&self, claim: &Claim) -> Result<(), Away> {
        self.release(&Lease::none(claim), &Release::Forget).await.map(drop)
    }

    /// Records what an inquiry proved about an id that has a recorded outcome already: a capture
    /// overrides a failure.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn remember(&self, claim: &Claim, fate: Fate) -> Result<(), Away> {
        self.release(&Lease::none(claim), &Release::Final(fate)).await.map(drop)
    }

    /// Records that a fresh id replaces an id with a recorded failure, and returns the recorded
    /// outcome. If there is none, or a capture, nothing was written and no fresh id may be sent.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn replace(&self, claim: &Claim, fate: &Fate) -> Result<Option<Recorded>, Away> {
        let record = record::write(claim, fate)?;
        let lease = Lease::none(claim);
        let call = self.release_call(&self.scripts.release, &lease, ("replaced", record, ""));
        Self::released(claim, self.run(&call).await?).map(|released| released.recorded)
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
    ) -> Result<Renewed, Away> {
        let (asked, epoch) = (Instant::now(), self.link.epoch());
        let mut call = self.call(&self.scripts.renew, &lease.claim);
        let denied_at = denied_at_replay.map(|replay| replay.to_string()).unwrap_or_default();
        call.arg(i64::from(posts)).arg(denied_at);
        let renewed: i64 = self.run(&call).await?;
        lease.until = asked + self.times.ttl;
        lease.epoch = epoch;
        Ok(match renewed {
            1 => Renewed::Kept,
            2 => Renewed::Recorded,
            _ => Renewed::Lost,
        })
    }

    /// Whether the connection is still the one on which the lease was acquired or renewed. If not,
    /// the lease may be lost: renew it before a call.
    #[must_use]
    pub fn is_current(&self, lease: &Lease) -> bool {
        lease.epoch.is_some() && lease.epoch == self.link.epoch()
    }

    /// Releases the lease and passes it to the first of the waiting list.
    ///
    /// # Errors
    /// Redis is unavailable: the lease expires after its time to live.
    pub async fn release(&self, lease: &Lease, release: &Release) -> Result<Released, Away> {
        let parts = record::parts(&lease.claim, release)?;
        let call = self.release_call(&self.scripts.release, lease, parts);
        Self::released(&lease.claim, self.run(&call).await?)
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
    ) -> Result<(Released, Acquired), Away> {
        let asked = (Instant::now(), self.link.epoch());
        let parts = record::parts(&lease.claim, release)?;
        let mut call = self.release_call(&self.scripts.hand_over, lease, parts);
        for key in next.keys().of_id() {
            call.key(key);
        }
        call.arg(i64::from(stays)).arg(next.token()).arg(next.id());
        call.arg(next.amount()).arg(i64::from(next.posts()));
        let (mine, found, verb, detail, marked, hold_left_ms, place): (i64, String, _, _, _, _, _) =
            self.run(&call).await?;
        let taken = (verb, detail, marked, hold_left_ms, place);
        let released = Self::released(&lease.claim, (mine, found))?;
        Ok((released, self.acquired(taken, next, asked)?))
    }

    /// `asked`: when the call began, and the generation of its connection.
    fn acquired(
        &self,
        taken: Taken,
        claim: &Claim,
        (asked, epoch): (Instant, Option<u64>),
    ) -> Result<Acquired, Away> {
        let (verb, detail, marked, hold_left_ms, place) = taken;
        let marked = marked == 1;
        Ok(match verb.as_str() {
            "taken" => Acquired::Taken(Lease {
                claim: claim.clone(),
                marker: marked.then(|| record::read_marker(&detail, claim.amount())),
                hold_left_ms,
                taken: asked,
                until: asked + self.times.ttl,
                epoch,
            }),
            "known" => Acquired::Known(record::read(&detail)?.1),
            "replaced" => Acquired::Replaced,
            "hold" => Acquired::OnHold { marked },
            _ => Acquired::Held { place: u32::try_from(place).ok(), marked },
        })
    }

    /// Reads what the scripts return about a released lease.
    fn released(claim: &Claim, (mine, found): (i64, String)) -> Result<Released, Away> {
        let recorded = match found.as_str() {
            "" => None,
            found => Some(match record::read(found)? {
                (amount, fate) if amount == claim.amount() => Recorded::Same(fate),
                (_, Fate::Captured(_)) => Recorded::CapturedOther,
                _ => Recorded::ReplacedOther,
            }),
        };
        Ok(Released { kept: mine == 1, recorded })
    }

    /// A call of a script with the keys and arguments that all scripts share.
    fn call<'s>(&self, script: &'s Script, claim: &Claim) -> ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for key in claim.keys().of_payment().into_iter().chain(claim.keys().of_id()) {
            call.key(key);
        }
        let LeaseTimes { ttl, hold_in_doubt, remember, .. } = self.times;
        for time in [ttl, hold_in_doubt, remember, GRANT, REPLACED] {
            call.arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        call.arg(claim.token()).arg(claim.id()).arg(claim.amount());
        call
    }

    fn release_call<'s>(
        &self,
        script: &'s Script,
        lease: &Lease,
        (mode, record, refused): (&str, String, &str),
    ) -> ScriptInvocation<'s> {
        let mut call = self.call(script, &lease.claim);
        let refused = match refused {
            "" => String::new(),
            code => format!("{}\n{code}", lease.claim.amount()),
        };
        call.arg(mode).arg(record).arg(lease.hold_left_ms()).arg(refused);
        call
    }

    async fn run<T: redis::FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Away> {
        let mut wire = self.wire()?;
        call.invoke_async(&mut wire).await.map_err(|error| {
            self.link.suspect(&error);
            Away(outage::describe(&error))
        })
    }

    fn wire(&self) -> Result<link::Wire, Away> {
        self.link.wire().ok_or_else(|| Away(self.link.absence()))
    }
}
