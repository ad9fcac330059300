//! The lease scripts, with their keys and arguments. Each script names them at its top.

use std::time::Duration;

use redis::{Script, ScriptInvocation};

use crate::lease::{Claim, Lease, LeaseTimes, record::Recording};

/// How long a lease that was passed to the first of the waiting list stays reserved for it. It is
/// many times the interval at which waiting workers ask.
const GRANT: Duration = Duration::from_millis(500);
/// How long a replaced id is remembered: longer than a copy of its dead letter can wait for a
/// replay.
const REPLACED: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// The scripts, and the times that all of them share.
pub(in crate::lease) struct Scripts {
    acquire: Script,
    renew: Script,
    release: Script,
    hand_over: Script,
    times_ms: [u64; 5],
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("../scripts/payment.lua"),
            include_str!(concat!("../scripts/", $file))
        ))
    };
}

impl Scripts {
    pub(in crate::lease) fn new(times: &LeaseTimes) -> Self {
        let LeaseTimes { ttl, in_doubt_block, remember, longest_call: _ } = *times;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            acquire: script!("acquire.lua"),
            renew: script!("renew.lua"),
            release: script!("release.lua"),
            hand_over: script!("hand_over.lua"),
            times_ms: [ttl, in_doubt_block, remember, GRANT, REPLACED].map(ms),
        }
    }

    pub(in crate::lease) fn acquire(&self, claim: &Claim, waits: bool) -> ScriptInvocation<'_> {
        let mut call = self.call(&self.acquire, claim);
        call.arg(i64::from(claim.posts())).arg(i64::from(waits));
        call
    }

    pub(in crate::lease) fn renew(
        &self,
        claim: &Claim,
        posts: bool,
        denied_at_replay: Option<u32>,
    ) -> ScriptInvocation<'_> {
        let mut call = self.call(&self.renew, claim);
        let denied_at = denied_at_replay.map(|replay| replay.to_string()).unwrap_or_default();
        call.arg(i64::from(posts)).arg(denied_at);
        call
    }

    pub(in crate::lease) fn release(
        &self,
        lease: &Lease,
        recording: &Recording,
    ) -> ScriptInvocation<'_> {
        self.recording_call(&self.release, lease, recording)
    }

    pub(in crate::lease) fn hand_over(
        &self,
        lease: &Lease,
        recording: &Recording,
        next: &Claim,
        stays: bool,
    ) -> ScriptInvocation<'_> {
        let mut call = self.recording_call(&self.hand_over, lease, recording);
        for key in next.keys().of_id() {
            call.key(key);
        }
        call.arg(i64::from(stays)).arg(next.token()).arg(next.id());
        call.arg(next.amount()).arg(i64::from(next.posts()));
        call
    }

    /// A call of a script with the keys and arguments that all scripts share.
    fn call<'s>(&self, script: &'s Script, claim: &Claim) -> ScriptInvocation<'s> {
        let mut call = script.prepare_invoke();
        for key in claim.keys().of_payment().into_iter().chain(claim.keys().of_id()) {
            call.key(key);
        }
        for time_ms in self.times_ms {
            call.arg(time_ms);
        }
        call.arg(claim.token()).arg(claim.id()).arg(claim.amount());
        call
    }

    fn recording_call<'s>(
        &self,
        script: &'s Script,
        lease: &Lease,
        recording: &Recording,
    ) -> ScriptInvocation<'s> {
        let mut call = self.call(script, &lease.claim);
        let Recording { mode, outcome, refused } = recording;
        call.arg(*mode).arg(outcome).arg(lease.block_left_ms()).arg(refused);
        call
    }
}
