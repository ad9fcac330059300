//! Exchanges that refuse what this program publishes: a permission is missing (403), the exchange
//! does not exist (404), or the broker does not accept such a message (406).
//!
//! A refusal closes the channel, and a new session would not help. Ending the session would count a
//! return for every job in flight, until innocent jobs become poison. So the refused messages are
//! kept and tried again with growing pauses, and no more jobs are consumed meanwhile.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::{
    message::{PublishError, PublishRefusal},
    request::PublishRequest,
};
use crate::broker::{names::Exchange, response::MethodRefusal};

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A refused exchange, and the requests that wait for it.
pub(super) struct RefusedExchange {
    pub(super) refusal: PublishRefusal,
    pub(super) held: Vec<PublishRequest>,
    pause: Duration,
    again_at: Instant,
}

/// The exchanges that refuse publishes at present.
pub(super) struct PublishRefusals {
    refused: Vec<RefusedExchange>,
    watched: watch::Sender<Option<PublishRefusal>>,
}

impl PublishRefusals {
    pub(super) const fn new(watched: watch::Sender<Option<PublishRefusal>>) -> Self {
        Self { refused: Vec::new(), watched }
    }

    /// Keeps a request if its exchange refuses publishes; otherwise returns it.
    pub(super) fn keep(&mut self, request: PublishRequest) -> Option<PublishRequest> {
        let exchange = request.message.exchange;
        match self.refused.iter_mut().find(|refused| refused.refusal.exchange == exchange) {
            Some(refused) => {
                refused.hold(request);
                None
            }
            None => Some(request),
        }
    }

    /// Records that the broker refused a request, and keeps the request.
    pub(super) fn refuse(
        &mut self,
        request: PublishRequest,
        refusal: PublishRefusal,
        declares: bool,
    ) {
        let (exchange, reason) = (refusal.exchange.name(), &refusal.reason);
        tracing::error!(exchange, reason, "publishing refused: jobs in flight are kept");
        let is_redeclared_at_once = refusal.is_missing && declares;
        let pause = if is_redeclared_at_once { Duration::ZERO } else { PAUSE_MIN };
        self.add(refusal, pause).hold(request);
        self.report();
    }

    /// Records a refusal that an earlier session found, to be tried again at once.
    pub(super) fn suspect(&mut self, refusal: PublishRefusal) {
        self.add(refusal, Duration::ZERO);
        self.report();
    }

    fn add(&mut self, refusal: PublishRefusal, pause: Duration) -> &mut RefusedExchange {
        let again_at = Instant::now() + pause;
        self.refused.push(RefusedExchange {
            refusal,
            held: Vec::new(),
            pause: PAUSE_MIN,
            again_at,
        });
        let last = self.refused.len() - 1;
        &mut self.refused[last]
    }

    /// Completes when the next exchange must be tried again.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let at = self.refused.iter().map(|refused| refused.again_at).min();
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// The index of an exchange that must be tried again now.
    pub(super) fn first_due(&self) -> Option<usize> {
        let now = Instant::now();
        self.refused.iter().position(|refused| refused.again_at <= now)
    }

    /// Puts off the next try of an exchange, because the broker blocks publishing at present.
    pub(super) fn postpone(&mut self, at: usize) {
        self.refused[at].again_at = Instant::now() + PAUSE_MIN;
    }

    /// Takes out an exchange that is tried again. The caller ends the try with [`Self::accepted`]
    /// or [`Self::refused_again`].
    pub(super) fn take(&mut self, at: usize) -> RefusedExchange {
        self.refused.remove(at)
    }

    /// Reports that an exchange that was taken out accepts publishes again.
    pub(super) fn accepted(&self, exchange: Exchange) {
        tracing::info!(exchange = exchange.name(), "publishing accepted again");
        self.report();
    }

    /// Puts an exchange back that still refuses publishes.
    pub(super) fn refused_again(
        &mut self,
        at: usize,
        mut refused: RefusedExchange,
        refusal: MethodRefusal,
    ) {
        refused.wait_longer(PublishRefusal::new(refused.refusal.exchange, refusal));
        self.refused.insert(at, refused);
        self.report();
    }

    /// Reports to the watchers which exchange refuses publishes.
    fn report(&self) {
        let first = self.refused.first().map(|refused| refused.refusal.clone());
        self.watched.send_replace(first);
    }
}

impl RefusedExchange {
    fn hold(&mut self, request: PublishRequest) {
        if request.is_patient {
            self.held.push(request);
        } else {
            request.respond(Err(PublishError::Forbidden(self.refusal.clone())));
        }
    }

    /// The exchange still refuses publishes: the next try comes after a longer pause.
    fn wait_longer(&mut self, refusal: PublishRefusal) {
        if self.refusal.reason != refusal.reason {
            let (exchange, reason) = (refusal.exchange.name(), &refusal.reason);
            tracing::error!(exchange, reason, "publishing refused for another reason");
        }
        self.refusal = refusal;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.again_at = Instant::now() + self.pause;
    }
}
