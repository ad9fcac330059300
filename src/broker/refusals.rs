//! Exchanges that refuse what this program publishes: a permission is missing (403), the exchange
//! does not exist (404), or the broker does not accept such a message (406).
//!
//! A refusal closes the channel, and a new session would not help. Ending the session would count a
//! return for every job in flight, until innocent jobs become poison. So the refused messages are
//! kept and tried again with growing pauses, and no more jobs are consumed meanwhile.

use std::time::Duration;

use lapin::ErrorKind;
use tokio::{sync::watch, time::Instant};

use super::{
    publisher::{PublishError, Publishing, Request},
    rights,
    topology::Exchange,
};

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// The broker refuses all publishes to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The exchange that refuses publishes.
    pub exchange: Exchange,
    /// The broker's error text, which names the cause.
    pub reason: String,
    is_missing: bool,
}

impl Refusal {
    pub(super) fn new(exchange: Exchange, code: u16, reason: String) -> Self {
        Self { exchange, reason, is_missing: code == NOT_FOUND }
    }
}

/// The code and the text with which the broker closed a channel, if the cause lasts until somebody
/// fixes it.
pub(super) fn denial_of(error: &lapin::Error) -> Option<(u16, String)> {
    let ErrorKind::ProtocolError(protocol) = error.kind() else { return None };
    let code = protocol.get_id();
    [ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED]
        .contains(&code)
        .then(|| (code, protocol.get_message().to_string()))
}

/// A refused exchange, and the requests that wait for it.
struct Refused {
    refusal: Refusal,
    held: Vec<Request>,
    pause: Duration,
    again_at: Instant,
}

/// The exchanges that refuse publishes at present.
pub(super) struct Refusals {
    refused: Vec<Refused>,
    told: watch::Sender<Option<Refusal>>,
}

impl Refusals {
    pub(super) const fn new(told: watch::Sender<Option<Refusal>>) -> Self {
        Self { refused: Vec::new(), told }
    }

    /// Keeps a request if its exchange refuses publishes; otherwise returns it.
    pub(super) fn keep(&mut self, request: Request) -> Option<Request> {
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
    pub(super) fn refuse(&mut self, request: Request, refusal: Refusal, declares: bool) {
        let (exchange, reason) = (refusal.exchange.name(), &refusal.reason);
        tracing::error!(exchange, reason, "publishing refused: jobs in flight are kept");
        let is_mended_at_once = refusal.is_missing && declares;
        let pause = if is_mended_at_once { Duration::ZERO } else { PAUSE_MIN };
        self.add(refusal, pause).hold(request);
        self.say();
    }

    /// Records a refusal that an earlier session found, to be tried again at once.
    pub(super) fn suspect(&mut self, refusal: Refusal) {
        self.add(refusal, Duration::ZERO);
        self.say();
    }

    fn add(&mut self, refusal: Refusal, pause: Duration) -> &mut Refused {
        let again_at = Instant::now() + pause;
        self.refused.push(Refused { refusal, held: Vec::new(), pause: PAUSE_MIN, again_at });
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

    fn say(&self) {
        let first = self.refused.first().map(|refused| refused.refusal.clone());
        self.told.send_replace(first);
    }
}

impl Refused {
    fn hold(&mut self, request: Request) {
        if request.is_patient {
            self.held.push(request);
        } else {
            request.answer(Err(PublishError::Forbidden(self.refusal.clone())));
        }
    }

    /// The exchange still refuses publishes: the next try comes after a longer pause.
    fn wait_longer(&mut self, reason: String) {
        if self.refusal.reason != reason {
            let exchange = self.refusal.exchange.name();
            tracing::error!(exchange, reason, "publishing refused for another reason");
            self.refusal.reason = reason;
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.again_at = Instant::now() + self.pause;
    }
}

impl Publishing {
    /// Tries an exchange again whose pause is over: with one of the messages that are kept for it,
    /// or with a rolled-back transaction if there are none.
    pub(super) async fn try_again(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let Some(at) = self.refusals.refused.iter().position(|refused| refused.again_at <= now)
        else {
            return Ok(());
        };
        if self.is_blocked() {
            self.refusals.refused[at].again_at = now + PAUSE_MIN;
            return Ok(());
        }
        let mut refused = self.refusals.refused.remove(at);
        let exchange = refused.refusal.exchange;
        refused.held.retain(Request::is_awaited);
        if refused.refusal.is_missing && self.link.declares() {
            self.link.declare().await;
        }
        let denial = if refused.held.is_empty() {
            let probed = rights::may_write(&self.link.options, exchange).await;
            probed.map_err(|error| format!("publishing failed: {error}"))?
        } else {
            self.try_first(&mut refused).await?
        };
        if let Some((code, reason)) = denial {
            refused.refusal.is_missing = code == NOT_FOUND;
            refused.wait_longer(reason);
            self.refusals.refused.insert(at, refused);
            self.refusals.say();
            return Ok(());
        }
        tracing::info!(exchange = exchange.name(), "publishing accepted again");
        self.refusals.say();
        self.commit(refused.held).await
    }

    /// Publishes the first of the kept messages: the broker may have refused the messages and not
    /// the exchange.
    async fn try_first(&mut self, refused: &mut Refused) -> Result<Option<(u16, String)>, String> {
        let first = if refused.held.is_empty() { None } else { Some(refused.held.remove(0)) };
        let (unknown, mut closed) = self.try_batch(first.into_iter().collect()).await?;
        refused.held.splice(0..0, unknown);
        Ok(closed.pop().map(|(_, denial)| denial))
    }
}
