//! The simulated gateway: its keys, its ledger and its scripts.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    keys::Keys,
    ledger::Ledger,
    recorder::CallRecorder,
    script::{Interface, Script, Step},
    simulation::simulation_of,
};
use crate::gateway::signing::{KeyError, SigningKey, VerifyingKeys};

/// Options that apply to all calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxOptions {
    /// Whether payments must be authorized (`PUT /sandbox/payments/{paymentId}`) before they are
    /// captured. Otherwise any payment may be captured for any sum. In strict mode, a capture
    /// without `captureType` is the last one of its payment, as at the gateway.
    pub strict: bool,
    /// The time that every call takes.
    pub latency: Duration,
}

/// The simulated gateway, with its keys, its ledger and its scripts.
pub struct Sandbox {
    pub(super) options: SandboxOptions,
    pub(super) keys: Keys,
    pub(super) signing_key: SigningKey,
    pub(super) merchant_keys: VerifyingKeys,
    state: Mutex<SandboxState>,
    pub(super) recorder: CallRecorder,
}

/// The mutable state: the ledger and the scripts.
#[derive(Default)]
pub(super) struct SandboxState {
    pub(super) ledger: Ledger,
    /// The steps for all calls.
    pub(super) script: Script,
    /// The steps for the calls of single payments, by payment id.
    pub(super) scripts: HashMap<String, Script>,
    /// The simulations that payment ids request, by `captureRequestId`.
    simulations: HashMap<String, Script>,
}

impl Sandbox {
    /// Creates a sandbox with an empty ledger.
    ///
    /// # Errors
    /// A key can't be read.
    pub fn new(keys: Keys, options: SandboxOptions) -> Result<Self, KeyError> {
        let merchant = SigningKey::parse(&keys.private_key)?;
        let public_key = merchant.public_key().ok_or(KeyError::NotAKey("private key"))?;
        let sandbox = Self {
            signing_key: SigningKey::parse(&keys.gateway_private_key)?,
            merchant_keys: VerifyingKeys::parse(&public_key)?,
            options,
            keys,
            state: Mutex::default(),
            recorder: CallRecorder::default(),
        };
        sandbox.clear();
        Ok(sandbox)
    }

    /// The credentials that a worker needs to call this sandbox.
    #[must_use]
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn with_state<T>(&self, act: impl FnOnce(&mut SandboxState) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Empties the ledger, the scripts and the list of calls.
    pub(super) fn clear(&self) {
        let ledger = Ledger { strict: self.options.strict, ..Ledger::default() };
        self.with_state(|state| *state = SandboxState { ledger, ..SandboxState::default() });
        self.recorder.clear();
    }
}

impl SandboxState {
    /// The step for a call: from its payment's script, else from the script for all calls, else
    /// from the simulation that the payment id requests.
    pub(super) fn next_step(
        &mut self,
        call: Interface,
        payment_id: &str,
        id: Option<&str>,
    ) -> Step {
        let scripted = self.scripts.get_mut(payment_id).and_then(|script| script.next(call, id));
        scripted
            .or_else(|| self.script.next(call, id))
            .or_else(|| {
                let script = simulation_of(payment_id)?;
                let key = id.unwrap_or_default().to_owned();
                self.simulations.entry(key).or_insert(script).next(call, id)
            })
            .unwrap_or_default()
    }
}
