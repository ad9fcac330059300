//! The lease and the hold: capture calls of one payment never run side by side, and a payment whose last capture is in
//! doubt takes no other until that is known.
//!
//! Keys, all of one payment in one Cluster slot: `capture:{<paymentId>}:lease` (the token of an acquisition), `:hold`
//! (that token and the id in doubt), `:line` (the tokens that wait for the lease, first come first served), `:sent:<id>`
//! (the token that first marked it), `:known:<id>` (its final outcome). Which server they are good at stands in
//! `capture:server` (see `guard`).
//!
//! The lease orders captures; money safety rests on the idempotency key. Nothing here decides what an outcome means.

mod claim;
mod guard;
mod inspect;
mod link;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Script, ScriptInvocation};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::link::Link;
pub use self::{
    claim::Claim,
    inspect::{Hold, Inspection},
    link::{BadUrl, RedisOptions},
};
use crate::domain::outcome::{Fate, Release};

/// A lease that was given to the next in line is free again if that one does not claim it within this time: many times
/// the pause in which waiters ask.
const GRANT: Duration = Duration::from_millis(500);

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

/// The lease of a payment, in the hands of one acquisition.
#[derive(Debug)]
pub struct Lease {
    claim: Claim,
    marked: bool,
    hold_left_ms: i64,
    taken: Instant,
    until: Instant,
    /// The connection that it was taken or renewed by.
    epoch: Option<u64>,
}

/// Redis did not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
#[error("Redis is away: {0}")]
pub struct Away(String);

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
    pub fn new(options: &RedisOptions, times: LeaseTimes) -> Result<Self, BadUrl> {
        let scripts = Scripts {
            acquire: script!("acquire.lua"),
            renew: script!("renew.lua"),
            release: script!("release.lua"),
            hand_over: script!("hand_over.lua"),
        };
        Ok(Self {
            link: Link::new(options, times.longest_call)?,
            scripts: Arc::new(scripts),
            times,
        })
    }

    /// Connects, and connects again whenever Redis was away, until the token is cancelled.
    pub async fn keep_connected(&self, stop: CancellationToken) {
        self.link.watch(stop).await;
    }

    /// Whether Redis answers, and when that changes.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.link.up()
    }

    /// Why it is not up, for people.
    #[must_use]
    pub fn absence(&self) -> &'static str {
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
        let asked = (Instant::now(), self.link.epoch());
        let mut call = self.call(&self.scripts.acquire, claim);
        call.arg(claim.amount()).arg(i64::from(claim.posts())).arg(i64::from(waits));
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

    /// Makes sure that a call of this length ends within the lease; before a capture that was not announced when the
    /// lease was taken, writes the hold and the mark. `false`: the lease is lost, begin no call.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn renew(&self, lease: &mut Lease, posts: bool) -> Result<bool, Away> {
        let (asked, epoch) = (Instant::now(), self.link.epoch());
        let mut call = self.call(&self.scripts.renew, &lease.claim);
        call.arg(lease.claim.amount()).arg(i64::from(posts));
        let renewed: i64 = self.run(&call).await?;
        lease.until = asked + self.times.ttl;
        lease.epoch = epoch;
        Ok(renewed == 1)
    }

    /// Whether Redis has been there since the lease was taken. If not, it may be lost: renew it before a call.
    #[must_use]
    pub fn is_current(&self, lease: &Lease) -> bool {
        lease.epoch.is_some() && lease.epoch == self.link.epoch()
    }

    /// Gives the lease back, to whoever is next in line. `false`: it was lost before.
    ///
    /// # Errors
    /// Redis is away: the lease ends by its time.
    pub async fn release(&self, lease: &Lease, release: &Release) -> Result<bool, Away> {
        let call = self.release_call(&self.scripts.release, lease, release)?;
        self.run::<i64>(&call).await.map(|mine| mine == 1)
    }

    /// Gives the lease back and takes it for the next job of the same payment, in one step. `stays`: even if another
    /// worker waits in line; else that one has it first, and the next job stands in line behind. Says also whether the
    /// lease was still ours.
    ///
    /// # Errors
    /// Redis is away: of neither job it is known how far that came.
    pub async fn hand_over(
        &self,
        lease: &Lease,
        release: &Release,
        next: &Claim,
        stays: bool,
    ) -> Result<(bool, Acquired), Away> {
        let asked = (Instant::now(), self.link.epoch());
        let mut call = self.release_call(&self.scripts.hand_over, lease, release)?;
        call.key(next.mark_key()).key(next.known_key());
        call.arg(i64::from(stays)).arg(next.token()).arg(next.id());
        call.arg(next.amount()).arg(i64::from(next.posts()));
        let (mine, verb, detail, marked, hold_left_ms, place): (i64, _, _, _, _, _) =
            self.run(&call).await?;
        let taken = (verb, detail, marked, hold_left_ms, place);
        Ok((mine == 1, self.acquired(taken, next, asked)?))
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
                marked,
                hold_left_ms,
                taken: asked,
                until: asked + self.times.ttl,
                epoch,
            }),
            "known" => Acquired::Known(read_fate(&detail)?),
            "hold" => Acquired::OnHold { marked },
            _ => Acquired::Held { place: u32::try_from(place).ok(), marked },
        })
    }

    /// A script with what all of them are told.
    fn call<'s>(&self, script: &'s Script, claim: &Claim) -> ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for key in claim.keys() {
            call.key(key);
        }
        let LeaseTimes { ttl, hold_in_doubt, remember, .. } = self.times;
        for time in [ttl, hold_in_doubt, remember, GRANT] {
            call.arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        call.arg(claim.token()).arg(claim.id());
        call
    }

    fn release_call<'s>(
        &self,
        script: &'s Script,
        lease: &Lease,
        release: &Release,
    ) -> Result<ScriptInvocation<'s>, Away> {
        let (mode, outcome) = match release {
            Release::Final(fate) => ("final", known(lease, fate)?),
            Release::Close(fate) => ("close", known(lease, fate)?),
            Release::EndHold => ("end", String::new()),
            Release::KeepHold => ("keep", String::new()),
            Release::TakeBack => ("back", String::new()),
            Release::Forget => ("forget", String::new()),
        };
        let mut call = self.call(script, &lease.claim);
        call.arg(mode).arg(outcome).arg(lease.hold_left_ms());
        Ok(call)
    }

    async fn run<T: redis::FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Away> {
        let mut wire = self.wire()?;
        call.invoke_async(&mut wire).await.map_err(|error| {
            self.link.suspect();
            Away(link::describe(&error))
        })
    }

    fn wire(&self) -> Result<link::Wire, Away> {
        self.link.wire().ok_or_else(|| Away(self.link.absence().into()))
    }
}

/// An outcome as it is remembered.
fn known(lease: &Lease, fate: &Fate) -> Result<String, Away> {
    let fate = serde_json::to_string(fate).map_err(|error| Away(error.to_string()))?;
    Ok(format!("{}\n{fate}", lease.claim.amount()))
}

fn read_fate(known: &str) -> Result<Fate, Away> {
    serde_json::from_str(known)
        .map_err(|error| Away(format!("a known outcome can't be read: {error}")))
}

impl Lease {
    /// What was never taken, to release what belongs to a claim.
    fn none(claim: &Claim) -> Self {
        let now = Instant::now();
        let claim = claim.clone();
        Self { claim, marked: false, hold_left_ms: -2, taken: now, until: now, epoch: None }
    }

    /// Whether an earlier acquisition marked this id as sent.
    #[must_use]
    pub const fn marked(&self) -> bool {
        self.marked
    }

    /// Whether the id was in doubt when the lease was taken.
    #[must_use]
    pub const fn is_on_hold(&self) -> bool {
        self.hold_left_ms > 0
    }

    /// Whether hold and mark were written when it was taken.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.claim.posts()
    }

    /// How much of the lease is left, counted from before it was asked for.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// What is left by now of the hold that was there before.
    fn hold_left_ms(&self) -> i64 {
        let passed_ms = i64::try_from(self.taken.elapsed().as_millis()).unwrap_or(i64::MAX);
        match self.hold_left_ms {
            left if left > 0 => left.saturating_sub(passed_ms).max(1),
            none => none,
        }
    }
}
