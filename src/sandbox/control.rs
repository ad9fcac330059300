//! The control API under `/sandbox`: tests add scripts and authorizations, and read the ledger.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::Html,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Sandbox, Step,
    answer::answer,
    ledger::{CaptureProgress, LedgerEntry, LedgerPayment},
    page,
    recorder::CallRecord,
    script::Script,
};
use crate::domain::money::Money;

/// The largest script or authorization that is read, in bytes.
const CONTROL_BYTES_MAX: usize = 256 * 1024;

type Shared = State<Arc<Sandbox>>;

/// The routes of the sandbox. Every path that is not listed goes to the gateway's protocol.
pub(super) fn router(sandbox: Arc<Sandbox>) -> Router {
    let control = Router::new()
        .route("/sandbox", get(page).delete(clear))
        .route("/sandbox/keys", get(keys))
        .route("/sandbox/ledger", get(ledger))
        .route("/sandbox/calls", get(calls))
        .route("/sandbox/script", post(add_for_all).get(steps_for_all).delete(clear_for_all))
        .route("/sandbox/payments/{payment_id}", get(payment).put(authorize))
        .route("/sandbox/payments/{payment_id}/script", post(add).get(steps).delete(clear_steps))
        .layer(DefaultBodyLimit::max(CONTROL_BYTES_MAX));
    Router::new().route("/", get(page)).merge(control).fallback(answer).with_state(sandbox)
}

async fn page(State(sandbox): Shared) -> Html<String> {
    Html(page::render(&sandbox))
}

async fn clear(State(sandbox): Shared) -> StatusCode {
    sandbox.clear();
    StatusCode::NO_CONTENT
}

async fn keys(State(sandbox): Shared) -> Json<Value> {
    Json(json!(sandbox.keys()))
}

async fn ledger(State(sandbox): Shared) -> Json<Value> {
    Json(sandbox.ledger())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(rename = "paymentId")]
    payment_id: Option<String>,
}

async fn calls(State(sandbox): Shared, Query(which): Query<Which>) -> Json<Value> {
    Json(sandbox.calls(which.payment_id.as_deref()))
}

async fn add_for_all(State(sandbox): Shared, Json(steps): Json<Vec<Step>>) -> StatusCode {
    sandbox.with_state(|state| state.script.add(steps));
    StatusCode::NO_CONTENT
}

async fn steps_for_all(State(sandbox): Shared) -> Json<Value> {
    Json(sandbox.with_state(|state| json!(state.script.steps())))
}

async fn clear_for_all(State(sandbox): Shared) -> StatusCode {
    sandbox.clear_steps(None);
    StatusCode::NO_CONTENT
}

async fn add(
    State(sandbox): Shared,
    Path(payment_id): Path<String>,
    Json(steps): Json<Vec<Step>>,
) -> StatusCode {
    sandbox.with_state(|state| state.scripts.entry(payment_id).or_default().add(steps));
    StatusCode::NO_CONTENT
}

async fn steps(State(sandbox): Shared, Path(payment_id): Path<String>) -> Json<Value> {
    Json(sandbox.with_state(|state| json!(state.scripts.get(&payment_id).map(Script::steps))))
}

async fn clear_steps(State(sandbox): Shared, Path(payment_id): Path<String>) -> StatusCode {
    sandbox.clear_steps(Some(&payment_id));
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorized: Money,
    /// `authExpiryTime` of the inquiry's reply. The sandbox shows it and does not enforce it.
    auth_expiry_time: Option<String>,
    /// `authReviewStatus` of the inquiry's reply. The sandbox shows it and does not enforce it.
    auth_review_status: Option<String>,
}

async fn authorize(
    State(sandbox): Shared,
    Path(payment_id): Path<String>,
    Json(authorization): Json<Authorization>,
) -> StatusCode {
    let Authorization { authorized, auth_expiry_time, auth_review_status } = authorization;
    sandbox.with_state(|state| {
        let payment = state.ledger.authorize(&payment_id, authorized);
        payment.auth_expiry_time = auth_expiry_time;
        payment.auth_review_status = auth_review_status;
    });
    StatusCode::NO_CONTENT
}

async fn payment(
    State(sandbox): Shared,
    Path(payment_id): Path<String>,
) -> Result<Json<Value>, (StatusCode, String)> {
    sandbox.payment(&payment_id).map(Json).ok_or_else(|| {
        (StatusCode::NOT_FOUND, format!("no call or authorization has named {payment_id}\n"))
    })
}

impl Sandbox {
    /// The whole ledger, as `GET /sandbox/ledger` returns it.
    #[must_use]
    pub fn ledger(&self) -> Value {
        let mut shown = self.with_state(|state| {
            let ledger = &state.ledger;
            let in_progress = |wanted: fn(&CaptureProgress) -> bool| {
                let mut ids: Vec<&str> = ledger
                    .requests
                    .values()
                    .filter(|request| wanted(&request.state))
                    .map(|request| request.asked.id.as_str())
                    .collect();
                ids.sort_unstable();
                json!(ids)
            };
            json!({
                "captures": ledger.movements,
                "captured": ledger.totals().into_iter()
                    .map(|(currency, sum)| (currency.to_owned(), json!(sum.to_string())))
                    .collect::<serde_json::Map<_, _>>(),
                "capturedTwice": ledger.captured_twice(),
                "failed": in_progress(|progress| matches!(progress, CaptureProgress::Failed(_))),
                "inProcess": in_progress(|progress| matches!(progress, CaptureProgress::InProcess { .. })),
                "unseen": in_progress(|progress| matches!(progress, CaptureProgress::Unseen)),
                "postsInProcess": ledger.requests.values().map(|request| request.posts_in_process)
                    .sum::<u64>(),
            })
        });
        self.recorder.read(|recorded| {
            shown["overlaps"] = json!(recorded.overlaps);
            shown["sameIdOverlaps"] = json!(recorded.same_id_overlaps);
            shown["atOnceMax"] = json!(recorded.at_once_max);
        });
        shown
    }

    /// One payment, as `GET /sandbox/payments/{paymentId}` returns it. `None` if no call or
    /// authorization has named it.
    #[must_use]
    pub fn payment(&self, payment_id: &str) -> Option<Value> {
        self.with_state(|state| {
            let LedgerPayment { authorized, captured, requests, inquiries, final_capture, .. } =
                state.ledger.payments.get(payment_id)?;
            let requests: Vec<Value> =
                requests.iter().filter_map(|id| state.ledger.requests.get(id)).map(shown).collect();
            Some(json!({
                "paymentId": payment_id,
                "authorized": authorized,
                "captured": captured.to_string(),
                "finalCapture": final_capture,
                "inquiries": inquiries,
                "requests": requests,
            }))
        })
    }

    /// The latest answered calls, of one payment or of all, as `GET /sandbox/calls` returns them.
    #[must_use]
    pub fn calls(&self, payment_id: Option<&str>) -> Value {
        let wanted = |call: &&CallRecord| payment_id.is_none_or(|id| id == call.payment_id);
        self.recorder
            .read(|recorded| json!(recorded.calls.iter().filter(wanted).collect::<Vec<_>>()))
    }

    /// The number of capture calls of a payment that are in progress.
    #[must_use]
    pub fn in_flight(&self, payment_id: &str) -> usize {
        self.recorder.read(|recorded| recorded.in_flight.get(payment_id).map_or(0, Vec::len))
    }

    /// Adds steps for one payment, or for all calls if it is `None`, like `POST …/script`.
    pub fn add_steps(&self, payment_id: Option<&str>, steps: Vec<Step>) {
        self.with_state(|state| match payment_id {
            Some(payment_id) => state.scripts.entry(payment_id.to_owned()).or_default().add(steps),
            None => state.script.add(steps),
        });
    }

    /// Removes the remaining steps of one payment, or those for all calls if it is `None`, like
    /// `DELETE …/script`.
    pub fn clear_steps(&self, payment_id: Option<&str>) {
        self.with_state(|state| match payment_id {
            Some(payment_id) => drop(state.scripts.remove(payment_id)),
            None => state.script = Script::default(),
        });
    }
}

fn shown(request: &LedgerEntry) -> Value {
    let (state, code) = match &request.state {
        CaptureProgress::Unseen => ("unseen", None),
        CaptureProgress::InProcess { .. } => ("inProcess", None),
        CaptureProgress::Captured(_) => ("captured", None),
        CaptureProgress::Failed(code) => ("failed", Some(code)),
    };
    json!({
        "captureRequestId": request.asked.id,
        "captureAmount": request.asked.amount,
        "fields": request.asked.fields,
        "state": state,
        "resultCode": code,
        "posts": request.posts,
        "postsInProcess": request.posts_in_process,
    })
}
