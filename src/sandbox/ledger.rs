//! The gateway's ledger: authorizations, captures by id, and every movement of money. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::{
    capture::class::{CAPTURE_IN_PROCESS, PAYMENT_IN_PROCESS, SUCCESS},
    job::forward::CAPTURE_TYPE,
    money::Money,
};

/// The maximum number of ids. The ledger accepts no new id beyond it, so that memory is bounded.
const REQUESTS_MAX: usize = 1_000_000;

/// A well-formed request for a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PostedCapture {
    pub(super) id: String,
    pub(super) payment_id: String,
    pub(super) amount: Money,
    /// Every other field of the request that is not null. A repeated request must have the same
    /// values, compared as JSON.
    pub(super) fields: Map<String, Value>,
}

impl PostedCapture {
    /// Whether no capture of the payment may follow this one. A strict ledger treats an absent
    /// `captureType` as `FINAL`, as the gateway does.
    fn is_final(&self, strict: bool) -> bool {
        match self.fields.get(CAPTURE_TYPE).and_then(Value::as_str) {
            Some(capture_type) => capture_type == "FINAL",
            None => strict,
        }
    }
}

/// The result of a call: code and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LedgerResult {
    pub(super) code: String,
    pub(super) status: &'static str,
    /// The movement of money, if the capture succeeded.
    pub(super) movement: Option<Movement>,
}

impl LedgerResult {
    fn of(code: &str, status: &'static str) -> Self {
        Self { code: code.to_owned(), status, movement: None }
    }
}

/// One executed capture. Movements are never removed or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Movement {
    pub(super) capture_request_id: String,
    pub(super) payment_id: String,
    pub(super) capture_id: String,
    pub(super) capture_amount: Money,
    pub(super) capture_time: String,
}

/// The state of one `captureRequestId`.
#[derive(Clone, Debug)]
pub(super) struct LedgerEntry {
    pub(super) asked: PostedCapture,
    pub(super) state: CaptureProgress,
    /// How often it was posted, including posts without a reply.
    pub(super) posts: u64,
    /// How often it was posted while it was in process.
    pub(super) posts_in_process: u64,
}

/// The progress of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CaptureProgress {
    /// It was posted, but the gateway has not processed the request: inquiries don't show it.
    Unseen,
    /// It is being processed for this many more inquiries. Then it ends with this code.
    InProcess { inquiries_left: u32, resolves_to: String },
    /// It is captured; this is the index of its movement.
    Captured(usize),
    /// It has finally failed with this code.
    Failed(String),
}

/// The state of one payment.
#[derive(Clone, Debug, Default)]
pub(super) struct LedgerPayment {
    /// The most that may be captured. `None` means no limit, in the currency of the first capture;
    /// a strict ledger captures nothing then.
    pub(super) authorized: Option<Money>,
    /// The `authExpiryTime` that an inquiry shows.
    pub(super) auth_expiry_time: Option<String>,
    /// The `authReviewStatus` that an inquiry shows.
    pub(super) auth_review_status: Option<String>,
    /// The id of the captured `FINAL` capture. No new id may follow it.
    pub(super) final_capture: Option<String>,
    pub(super) captured: u128,
    /// Its capture ids, in the order in which they were first posted.
    pub(super) requests: Vec<String>,
    pub(super) inquiries: u64,
}

/// All authorizations, requests and movements.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Whether payments must be authorized before they are captured.
    pub(super) strict: bool,
    pub(super) payments: BTreeMap<String, LedgerPayment>,
    pub(super) requests: HashMap<String, LedgerEntry>,
    pub(super) movements: Vec<Movement>,
}

impl Ledger {
    /// Authorizes a payment, or changes what it is authorized for.
    pub(super) fn authorize(&mut self, payment_id: &str, authorized: Money) -> &mut LedgerPayment {
        let payment = self.payments.entry(payment_id.to_owned()).or_default();
        payment.authorized = Some(authorized);
        payment
    }

    /// Counts a post. Call it before any other method for the request: it creates the entry.
    pub(super) fn count_post(&mut self, asked: &PostedCapture) {
        if !self.requests.contains_key(&asked.id) {
            if self.requests.len() >= REQUESTS_MAX {
                return;
            }
            let fresh = LedgerEntry {
                asked: asked.clone(),
                state: CaptureProgress::Unseen,
                posts: 0,
                posts_in_process: 0,
            };
            self.requests.insert(asked.id.clone(), fresh);
            let payment = self.payments.entry(asked.payment_id.clone()).or_default();
            payment.requests.push(asked.id.clone());
        }
        if let Some(request) = self.requests.get_mut(&asked.id) {
            request.posts += 1;
            if matches!(request.state, CaptureProgress::InProcess { .. }) {
                request.posts_in_process += 1;
            }
        }
    }

    /// Whether an id is captured or has failed. Its reply never changes then.
    pub(super) fn is_final(&self, id: &str) -> bool {
        let state = self.requests.get(id).map(|request| &request.state);
        matches!(state, Some(CaptureProgress::Captured(_) | CaptureProgress::Failed(_)))
    }

    /// Executes a capture, at most once per id, and returns its result.
    pub(super) fn capture(&mut self, asked: &PostedCapture, now: &str) -> LedgerResult {
        let Some(request) = self.requests.get_mut(&asked.id) else {
            return LedgerResult::of(
                crate::domain::capture::class::REQUEST_TRAFFIC_EXCEED_LIMIT,
                "U",
            );
        };
        if request.state == CaptureProgress::Unseen {
            // The gateway has not processed an earlier post, so values may still change.
            request.asked = asked.clone();
            return match self.refusal(asked) {
                Some(code) => self.fail(asked, code),
                None => self.execute(asked, now),
            };
        }
        if request.asked != *asked {
            return LedgerResult::of("REPEAT_REQ_INCONSISTENT", "F");
        }
        match &request.state {
            CaptureProgress::Failed(code) => LedgerResult::of(code, "F"),
            CaptureProgress::Captured(movement) => success(self.movements.get(*movement)),
            CaptureProgress::Unseen | CaptureProgress::InProcess { .. } => {
                LedgerResult::of(CAPTURE_IN_PROCESS, "U")
            }
        }
    }

    /// Ends a capture with this code, unless it has ended or is in process.
    pub(super) fn fail(&mut self, asked: &PostedCapture, code: &str) -> LedgerResult {
        if let Some(request) = self.unseen(asked) {
            request.state = CaptureProgress::Failed(code.to_owned());
        }
        LedgerResult::of(code, "F")
    }

    /// Puts a capture in process, unless it has ended or is in process already.
    pub(super) fn begin(&mut self, asked: &PostedCapture, inquiries: u32, resolves_to: &str) {
        if let Some(request) = self.unseen(asked) {
            let resolves_to = resolves_to.to_owned();
            request.state = CaptureProgress::InProcess { inquiries_left: inquiries, resolves_to };
        }
    }

    fn unseen(&mut self, asked: &PostedCapture) -> Option<&mut LedgerEntry> {
        let request = self.requests.get_mut(&asked.id)?;
        if request.state != CaptureProgress::Unseen {
            return None;
        }
        request.asked = asked.clone();
        Some(request)
    }

    /// The captures that an inquiry shows. `None` if the payment does not exist.
    pub(super) fn inquire(
        &mut self,
        payment_id: &str,
        now: &str,
    ) -> Option<Vec<(LedgerEntry, LedgerResult)>> {
        let Some(payment) = self.payments.get_mut(payment_id) else {
            return (!self.strict).then(Vec::new);
        };
        payment.inquiries += 1;
        if self.strict && payment.authorized.is_none() {
            return None;
        }
        let ids = payment.requests.clone();
        Some(ids.iter().filter_map(|id| self.show(id, now)).collect())
    }

    fn show(&mut self, id: &str, now: &str) -> Option<(LedgerEntry, LedgerResult)> {
        let request = self.requests.get_mut(id)?;
        if let CaptureProgress::InProcess { inquiries_left, resolves_to } = &mut request.state {
            if *inquiries_left > 0 {
                // `u32::MAX` means that it stays in process forever.
                if *inquiries_left < u32::MAX {
                    *inquiries_left -= 1;
                }
                return Some((request.clone(), LedgerResult::of(PAYMENT_IN_PROCESS, "U")));
            }
            let (asked, code) = (request.asked.clone(), resolves_to.clone());
            if code == SUCCESS {
                self.execute(&asked, now);
            } else {
                request.state = CaptureProgress::Failed(code);
            }
        }
        let request = self.requests.get(id)?.clone();
        let verdict = match &request.state {
            CaptureProgress::Captured(movement) => success(self.movements.get(*movement)),
            CaptureProgress::Failed(code) => LedgerResult::of(code, "F"),
            CaptureProgress::Unseen | CaptureProgress::InProcess { .. } => return None,
        };
        Some((request, verdict))
    }

    fn refusal(&self, asked: &PostedCapture) -> Option<&'static str> {
        let payment = self
            .payments
            .get(&asked.payment_id)
            .filter(|payment| !self.strict || payment.authorized.is_some());
        let Some(payment) = payment else { return Some("AUTH_NOT_FOUND") };
        // Inferred: the gateway's reply after a final capture is not documented.
        if payment.final_capture.is_some() {
            return Some("ORDER_STATUS_INVALID");
        }
        let before = payment.requests.iter().find_map(|id| match &self.requests.get(id)?.state {
            CaptureProgress::Captured(_) => Some(self.requests.get(id)?.asked.amount.currency()),
            _ => None,
        });
        let currency = payment.authorized.map(Money::currency).or(before);
        if currency.is_some_and(|currency| currency != asked.amount.currency()) {
            return Some("CURRENCY_NOT_SUPPORT");
        }
        let sum = payment.captured + u128::from(asked.amount.value());
        let exceeds = payment.authorized.is_some_and(|limit| sum > u128::from(limit.value()));
        exceeds.then_some("CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT")
    }

    fn execute(&mut self, asked: &PostedCapture, now: &str) -> LedgerResult {
        let movement = Movement {
            capture_request_id: asked.id.clone(),
            payment_id: asked.payment_id.clone(),
            capture_id: format!("{:032}", self.movements.len() + 1),
            capture_amount: asked.amount,
            capture_time: now.to_owned(),
        };
        if let Some(payment) = self.payments.get_mut(&asked.payment_id) {
            payment.captured += u128::from(asked.amount.value());
            if asked.is_final(self.strict) {
                payment.final_capture.get_or_insert_with(|| asked.id.clone());
            }
        }
        if let Some(request) = self.requests.get_mut(&asked.id) {
            request.state = CaptureProgress::Captured(self.movements.len());
        }
        let verdict = success(Some(&movement));
        self.movements.push(movement);
        verdict
    }

    /// The captured sums by currency, in the smallest unit.
    pub(super) fn totals(&self) -> BTreeMap<&'static str, u128> {
        let mut totals = BTreeMap::new();
        for movement in &self.movements {
            let currency = movement.capture_amount.currency().code();
            *totals.entry(currency).or_default() += u128::from(movement.capture_amount.value());
        }
        totals
    }

    /// Ids that moved money more than once. They are counted from the movements, so that a bug in
    /// this ledger shows too.
    pub(super) fn captured_twice(&self) -> Vec<&str> {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for movement in &self.movements {
            *times.entry(&movement.capture_request_id).or_default() += 1;
        }
        times.into_iter().filter(|(_, times)| *times > 1).map(|(id, _)| id).collect()
    }
}

fn success(movement: Option<&Movement>) -> LedgerResult {
    LedgerResult { movement: movement.cloned(), ..LedgerResult::of(SUCCESS, "S") }
}

#[cfg(test)]
mod tests;
