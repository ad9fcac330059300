//! The lease and the hold: capture calls of one payment never run side by side, and a payment whose last capture is in
//! doubt takes no other until that is known.
//!
//! Keys, all of one payment in one Cluster slot: `capture:{<paymentId>}:lease` (the token of an acquisition), `:hold`
//! (that token and the id in doubt), `:sent:<id>` (the token that first marked it), `:known:<id>` (its final outcome).
//!
//! The lease orders captures; money safety rests on the idempotency key. Nothing here decides what an outcome means.

mod link;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use redis::Script;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::link::Link;
pub use self::link::{BadUrl, RedisOptions};
use crate::domain::{
    job::Job,
    money::Money,
    outcome::{Fate, Release},
};

/// What stays readable of an id in a key; braces, colons and percent signs do not.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How long leases and what they leave behind live.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A lease that nobody gives back.
    pub ttl: Duration,
    /// The hold of an id in doubt, after its last send.
    pub hold_in_doubt: Duration,
    /// A known outcome, and the mark of a sent id.
    pub remember: Duration,
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
}

/// What came of trying to take a lease.
#[derive(Debug)]
pub enum Acquired {
    /// It is ours.
    Taken(Lease),
    /// The id's final outcome is known: no call is needed.
    Known(Fate),
    /// Not now.
    Refused {
        /// Because of another id that is in doubt, rather than of a call under way.
        by_hold: bool,
        /// Whether an earlier acquisition marked this id as sent.
        marked: bool,
    },
}

/// One acquisition of a payment's lease.
#[derive(Debug)]
pub struct Lease {
    token: Token,
    keys: [String; 4],
    id: String,
    amount: Money,
    marked: bool,
    hold_left_ms: i64,
    taken: Instant,
    until: Instant,
}

/// The name of one acquisition. The same token may ask again: a lost answer does no harm.
#[derive(Clone, Debug)]
pub struct Token(String);

impl Token {
    /// A fresh one.
    #[must_use]
    pub fn fresh() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }
}

/// Redis did not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
#[error("Redis is away: {0}")]
pub struct Away(String);

impl Leases {
    /// Leases at this Redis. Nothing is connected until [`Leases::keep_connected`] runs.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn new(options: &RedisOptions, times: LeaseTimes) -> Result<Self, BadUrl> {
        let scripts = Scripts {
            acquire: Script::new(include_str!("acquire.lua")),
            renew: Script::new(include_str!("renew.lua")),
            release: Script::new(include_str!("release.lua")),
        };
        Ok(Self { link: Link::new(options)?, scripts: Arc::new(scripts), times })
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

    /// Takes the lease of a job's payment. `posts` says that a capture is sent at once: only then the hold and the mark
    /// of the id are written.
    ///
    /// # Errors
    /// Redis is away; whether the lease was taken is not known, and asking again with the same token is safe.
    pub async fn acquire(&self, job: &Job, token: &Token, posts: bool) -> Result<Acquired, Away> {
        let keys = keys(job);
        let asked = Instant::now();
        let invocation = self.invocation(
            &self.scripts.acquire,
            &keys,
            token,
            &job.capture_request_id,
            job.amount,
            posts,
        );
        let (verb, detail, marked, hold_left_ms): (String, String, i64, i64) =
            self.run(&invocation).await?;
        let marked = marked == 1;
        match verb.as_str() {
            "taken" => Ok(Acquired::Taken(Lease {
                token: token.clone(),
                keys,
                id: job.capture_request_id.clone(),
                amount: job.amount,
                marked,
                hold_left_ms,
                taken: asked,
                until: asked + self.times.ttl,
            })),
            "known" => serde_json::from_str(&detail)
                .map(Acquired::Known)
                .map_err(|error| Away(format!("a known outcome can't be read: {error}"))),
            verb => Ok(Acquired::Refused { by_hold: verb == "hold", marked }),
        }
    }

    /// Takes back whatever an acquisition may have written whose answer was lost, and that is given up.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn forget(&self, job: &Job, token: &Token) -> Result<(), Away> {
        let now = Instant::now();
        let lease = Lease {
            token: token.clone(),
            keys: keys(job),
            id: job.capture_request_id.clone(),
            amount: job.amount,
            marked: false,
            hold_left_ms: -2,
            taken: now,
            until: now,
        };
        self.release(&lease, &Release::Forget).await.map(drop)
    }

    /// How long an id in doubt keeps others out.
    #[must_use]
    pub const fn hold_in_doubt(&self) -> Duration {
        self.times.hold_in_doubt
    }

    /// Makes sure that a call of this length ends within the lease; before a capture that was not announced to
    /// [`Leases::acquire`], writes the hold and the mark. `false`: the lease is lost, begin no call.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn renew(&self, lease: &mut Lease, posts: bool) -> Result<bool, Away> {
        let asked = Instant::now();
        let invocation = self.invocation(
            &self.scripts.renew,
            &lease.keys,
            &lease.token,
            &lease.id,
            lease.amount,
            posts,
        );
        let renewed: i64 = self.run(&invocation).await?;
        lease.until = asked + self.times.ttl;
        Ok(renewed == 1)
    }

    /// Gives the lease back. `false`: it was lost before.
    ///
    /// # Errors
    /// Redis is away: the lease ends by its time.
    pub async fn release(&self, lease: &Lease, release: &Release) -> Result<bool, Away> {
        let (mode, known) = match release {
            Release::Final(fate) => {
                let fate = serde_json::to_string(fate).map_err(|error| Away(error.to_string()))?;
                ("final", format!("{}\n{fate}", amount_text(lease.amount)))
            }
            Release::EndHold => ("end", String::new()),
            Release::KeepHold => ("keep", String::new()),
            Release::TakeBack => ("back", String::new()),
            Release::Forget => ("forget", String::new()),
        };
        let passed_ms = i64::try_from(lease.taken.elapsed().as_millis()).unwrap_or(i64::MAX);
        let hold_left_ms = match lease.hold_left_ms {
            left if left > 0 => left.saturating_sub(passed_ms).max(1),
            none => none,
        };
        let mut invocation = self.scripts.release.prepare_invoke();
        for key in &lease.keys {
            invocation.key(key);
        }
        invocation
            .arg(&lease.token.0)
            .arg(&lease.id)
            .arg(mode)
            .arg(known)
            .arg(millis(self.times.remember))
            .arg(hold_left_ms);
        self.run::<i64>(&invocation).await.map(|mine| mine == 1)
    }

    fn invocation<'s>(
        &self,
        script: &'s Script,
        keys: &[String; 4],
        token: &Token,
        id: &str,
        amount: Money,
        posts: bool,
    ) -> redis::ScriptInvocation<'s> {
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        invocation
            .arg(&token.0)
            .arg(id)
            .arg(amount_text(amount))
            .arg(millis(self.times.ttl))
            .arg(millis(self.times.hold_in_doubt))
            .arg(millis(self.times.remember))
            .arg(i64::from(posts));
        invocation
    }

    async fn run<T: redis::FromRedisValue>(
        &self,
        invocation: &redis::ScriptInvocation<'_>,
    ) -> Result<T, Away> {
        let mut wire = self.link.wire().ok_or_else(|| Away("not connected".into()))?;
        invocation.invoke_async(&mut wire).await.map_err(|error| {
            self.link.suspect();
            Away(link::describe(&error))
        })
    }
}

impl Lease {
    /// Whether an earlier acquisition marked this id as sent.
    #[must_use]
    pub const fn marked(&self) -> bool {
        self.marked
    }

    /// How much of the lease is left, counted from before it was asked for.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

fn keys(job: &Job) -> [String; 4] {
    let payment = utf8_percent_encode(&job.payment_id, KEY);
    let id = utf8_percent_encode(&job.capture_request_id, KEY);
    [
        format!("capture:{{{payment}}}:lease"),
        format!("capture:{{{payment}}}:hold"),
        format!("capture:{{{payment}}}:sent:{id}"),
        format!("capture:{{{payment}}}:known:{id}"),
    ]
}

fn amount_text(amount: Money) -> String {
    format!("{}:{}", amount.currency().code(), amount.value())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_payment_share_one_slot_whatever_its_id() {
        let body = r#"{"captureRequestId":"a:}b","paymentId":"p{1}/é","amount":{"currency":"HKD","value":"1"}}"#;
        let job = Job::parse(body.as_bytes()).unwrap();
        let keys = keys(&job);
        assert_eq!(keys[0], "capture:{p%7B1%7D%2F%C3%A9}:lease");
        assert_eq!(keys[3], "capture:{p%7B1%7D%2F%C3%A9}:known:a%3A%7Db");
    }
}
