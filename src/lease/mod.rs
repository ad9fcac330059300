//! The lease and the hold: capture calls of one payment never run side by side, and a payment whose last capture is in
//! doubt takes no other until that is known.
//!
//! Keys begin with the owner, `<broker.prefix>:<client id>` (see [`Owner`]); then, all of one payment in one Cluster slot,
//! `:{<paymentId>}:lease` (the token of an acquisition), `:hold` (that token and the id in doubt), `:line` (the tokens that
//! wait for the lease, first come first served), `:sent:<id>` (the token that first marked it, and what the gateway signed
//! meanwhile), `:known:<id>` (its final outcome), `:replaced:<id>` (the failure with which it was closed when a fresh id
//! replaced it). Which server they are good at stands in the owner's `:server` (see `guard`).
//!
//! The lease orders captures; money safety rests on the idempotency key. Nothing here decides what an outcome means.

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
    job::Job,
    outcome::{Fate, Recorded, Release},
};

/// A lease that was given to the next in line is free again if that one does not claim it within this time: many times
/// the pause in which waiters ask.
const GRANT: Duration = Duration::from_millis(500);
/// How long it is kept that an id was replaced: longer than a copy of its dead letter may lie before it is replayed.
const REPLACED: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Who takes leases, which decides what is done about a Redis that may have lost some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A worker: it waits until the calls under way have ended, then names the server.
    Worker,
    /// A command: it names no server, and takes no lease where none is named.
    Command,
}

/// How long leases and what they leave behind live.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A lease that nobody gives back.
    pub ttl: Duration,
    /// The hold of an id in doubt, after its last send.
    pub hold_in_doubt: Duration,
    /// A known outcome, and the mark of a sent id.
    pub remember: Duration,
    /// The longest that a capture call may take: so long nobody takes a lease at a Redis that may have lost some.
    pub longest_call: Duration,
}

/// Takes and gives back leases.
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

/// What came of trying to take a lease.
#[derive(Debug)]
pub enum Acquired {
    /// It is ours.
    Taken(Lease),
    /// The id's final outcome is known: no call is needed.
    Known(Fate),
    /// A fresh id replaced this one, for another amount: it is never posted again.
    Replaced,
    /// Another capture of the payment is under way.
    Held {
        /// How many stand before us in line; `None` if we do not stand there.
        place: Option<u32>,
        /// Whether an earlier acquisition marked this id as sent.
        marked: bool,
    },
    /// Another id of the payment is in doubt.
    OnHold {
        /// Whether an earlier acquisition marked this id as sent.
        marked: bool,
    },
}

/// Redis did not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
#[error("Redis is away: {0}")]
pub struct Away(String);

/// What came of making sure of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It is still ours.
    Kept,
    /// It is lost: begin no call.
    Lost,
    /// An outcome of the id is on record by now, which the release tells: begin no call.
    Recorded,
}

/// What came of giving a lease back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether it was still ours.
    pub kept: bool,
    /// What was on record of the id before.
    pub recorded: Option<Recorded>,
}

impl Away {
    /// The error alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }
}

/// As the scripts say it: verb, detail, 1 if marked, ms that the hold had left, place in line.
type Taken = (String, String, i64, i64, i64);

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("common.lua"), include_str!($file)))
    };
}

impl Leases {
    /// Leases at this Redis. Nothing is connected until [`Leases::keep_connected`] runs.
    ///
    /// # Errors
    /// The URL can't be used.
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

    /// An acquisition for a job. `posts`: a capture is sent as soon as the lease is taken.
    #[must_use]
    pub fn claim(&self, job: &Job, posts: bool) -> Claim {
        Claim::of(&self.owner, job, posts)
    }

    /// Connects, and connects again whenever Redis was away, until the token is cancelled.
    pub async fn keep_connected(&self, stop: CancellationToken) {
        self.link.watch(stop).await;
    }

    /// Why no lease may be taken now, if Redis answers and may have lost some.
    pub async fn withheld(&self) -> Option<&'static str> {
        self.link.withholds().await
    }

    /// The policy by which Redis may evict keys when its memory is full, once it is connected to;
    /// `None` if it is `noeviction`, or if nobody tells.
    #[must_use]
    pub fn eviction_policy(&self) -> Option<String> {
        self.link.eviction_policy()
    }

    /// Whether Redis answers, and when that changes.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.link.up()
    }

    /// Why it is not up, for people.
    #[must_use]
    pub fn absence(&self) -> String {
        self.link.absence()
    }

    /// How long an id in doubt keeps others out.
    #[must_use]
    pub const fn hold_in_doubt(&self) -> Duration {
        self.times.hold_in_doubt
    }

    /// Takes the lease of a job's payment. `waits`: where another has it, stand in line, and ask again with the same claim.
    ///
    /// # Errors
    /// Redis is away; whether the lease was taken is not known, and asking again with the same claim is safe.
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

    /// Takes back whatever an acquisition may have written whose answer was lost, or that stands in line, and is given up.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn forget(&self, claim: &Claim) -> Result<(), Away> {
        self.release(&Lease::none(claim), &Release::Forget).await.map(drop)
    }

    /// Records what an inquiry proved about an id whose outcome is on record already: a capture stands against a failure.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn remember(&self, claim: &Claim, fate: Fate) -> Result<(), Away> {
        self.release(&Lease::none(claim), &Release::Final(fate)).await.map(drop)
    }

    /// Records that a fresh id replaces an id whose failure is on record, and says what is on record by now. If that is
    /// nothing, or a capture, nothing was written and no fresh id may go.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn replace(&self, claim: &Claim, fate: &Fate) -> Result<Option<Recorded>, Away> {
        let record = record::write(claim, fate)?;
        let lease = Lease::none(claim);
        let call = self.release_call(&self.scripts.release, &lease, ("replaced", record, ""));
        Self::released(claim, self.run(&call).await?).map(|released| released.recorded)
    }

    /// Makes sure that a call of this length ends within the lease; before a capture that was not announced when the
    /// lease was taken (`posts`), writes the hold and the sent marker, with the number of replays at which an inquiry
    /// has just shown that there is no such capture.
    ///
    /// # Errors
    /// Redis is away.
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

    /// Whether Redis has been there since the lease was taken. If not, it may be lost: renew it before a call.
    #[must_use]
    pub fn is_current(&self, lease: &Lease) -> bool {
        lease.epoch.is_some() && lease.epoch == self.link.epoch()
    }

    /// Gives the lease back, to whoever is next in line.
    ///
    /// # Errors
    /// Redis is away: the lease ends by its time.
    pub async fn release(&self, lease: &Lease, release: &Release) -> Result<Released, Away> {
        let parts = record::parts(&lease.claim, release)?;
        let call = self.release_call(&self.scripts.release, lease, parts);
        Self::released(&lease.claim, self.run(&call).await?)
    }

    /// Gives the lease back and takes it for the next job of the same payment, in one step. `stays`: even if another
    /// worker waits in line; else that one has it first, and the next job stands in line behind.
    ///
    /// # Errors
    /// Redis is away: of neither job it is known how far that came.
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

    /// `asked`: when, and by which connection.
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

    /// What the scripts say of a lease that was given back.
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

    /// A script with what all of them are told.
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
