//! Answers one call of the gateway's protocol: checks it, looks up the scripts and the ledger, and
//! sends the signed reply.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
        header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
    },
};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{
    Call, Peer, Sandbox, Step, Way,
    gate::{Admitted, Gate, TurnedAway},
    ledger::{CaptureRequest, Movement, Payment, Request as Known, State as Stage, Verdict},
    now,
    watch::CallRecord,
};
use crate::{
    domain::{
        capture::class::{CAPTURE_IN_PROCESS, Codes},
        settlement::epoch_ms,
    },
    gateway::signing::signature_header,
};

/// The largest request body that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// The length of a reply body that the worker refuses to read, in bytes.
const HUGE_BYTES: usize = 1024 * 1024;

/// A reply before it is signed.
struct Draft {
    code: String,
    status: String,
    message: String,
    /// The fields beside `result`.
    fields: Map<String, Value>,
    signed: bool,
}

impl Draft {
    fn of(code: &str, status: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            status: status.to_owned(),
            message: message.into(),
            fields: Map::new(),
            signed: true,
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Map::new();
        body.insert(
            "result".to_owned(),
            json!({
                "resultCode": self.code,
                "resultStatus": self.status,
                "resultMessage": self.message,
            }),
        );
        body.extend(self.fields.clone());
        Value::Object(body).to_string().into_bytes()
    }
}

/// Answers a call of the gateway's protocol, at any path that no other route serves.
pub(super) async fn answer(
    State(sandbox): State<Arc<Sandbox>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX).await else {
        let message = format!("the body is longer than {REQUEST_BYTES_MAX} bytes");
        return sandbox.send(&path, &Draft::of("PARAM_ILLEGAL", "F", message), None);
    };
    let gate = Gate { client_id: &sandbox.keys.client_id, merchant_keys: &sandbox.merchant_keys };
    match gate.admit(&parts.method, &path, &parts.headers, &body) {
        Ok(Admitted::Capture(asked)) => sandbox.on_capture(&path, &peer, &asked).await,
        Ok(Admitted::Inquiry { payment_id }) => sandbox.on_inquiry(&path, &peer, &payment_id).await,
        Err(TurnedAway { code, message, signed }) => {
            tracing::info!(%path, code, why = message, "call refused");
            let draft = Draft { signed, ..Draft::of(code, "F", message) };
            sandbox.send(&path, &draft, None)
        }
    }
}

impl Sandbox {
    async fn on_capture(&self, path: &str, peer: &Peer, asked: &CaptureRequest) -> Response<Body> {
        let _in_flight = self.watch.begin(&asked.payment_id, &asked.id);
        let step = self.books(|books| {
            books.ledger.count_post(asked);
            books.next_step(Call::Capture, &asked.payment_id, Some(&asked.id))
        });
        tokio::time::sleep(self.options.latency + step.delay()).await;
        let draft = self.books(|books| capture(&mut books.ledger, asked, &step));
        self.record("capture", &asked.payment_id, Some(&asked.id), &step, &draft);
        self.send_by(path, peer, &step, draft).await
    }

    async fn on_inquiry(&self, path: &str, peer: &Peer, payment_id: &str) -> Response<Body> {
        let step = self.books(|books| books.next_step(Call::Inquiry, payment_id, None));
        tokio::time::sleep(self.options.latency + step.delay()).await;
        let (seen, payment) = self.books(|books| {
            let seen = books.ledger.inquire(payment_id, &now());
            (seen, books.ledger.payments.get(payment_id).cloned().unwrap_or_default())
        });
        let draft = match &step.answer {
            Way::Code(code) => scripted(&step, code),
            _ => inquired(payment_id, &payment, seen),
        };
        self.record("inquiryPayment", payment_id, None, &step, &draft);
        self.send_by(path, peer, &step, draft).await
    }

    fn record(
        &self,
        call: &'static str,
        payment_id: &str,
        id: Option<&str>,
        step: &Step,
        draft: &Draft,
    ) {
        let answer = match &step.answer {
            Way::Honest | Way::Code(_) => draft.code.clone(),
            other => match serde_json::to_value(other) {
                Ok(Value::String(name)) => name,
                Ok(other) => other.to_string(),
                Err(_) => String::new(),
            },
        };
        tracing::debug!(call, payment_id, capture_request_id = id, answer, "call answered");
        self.watch.record(CallRecord {
            at: now(),
            at_ms: epoch_ms(OffsetDateTime::now_utc()),
            call,
            payment_id: payment_id.to_owned(),
            capture_request_id: id.map(str::to_owned),
            answer,
        });
    }

    /// Sends a draft in the way that the step requires.
    async fn send_by(
        &self,
        path: &str,
        peer: &Peer,
        step: &Step,
        mut draft: Draft,
    ) -> Response<Body> {
        draft.fields.extend(step.fields.clone());
        match &step.answer {
            Way::NoAnswer => {
                tracing::debug!(peer = %peer.address, "connection closed without a reply");
                peer.cut();
                Response::new(Body::empty())
            }
            Way::Hang => std::future::pending().await,
            Way::Http(status) => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY);
                let mut response = self.send(path, &draft, step.retry_after);
                *response.status_mut() = status;
                if status.is_redirection()
                    && let Ok(value) = HeaderValue::from_str(path)
                {
                    response.headers_mut().insert(LOCATION, value);
                }
                response
            }
            Way::Garbage => Response::new(Body::from("<html>Bad gateway</html>")),
            Way::Empty => Response::new(Body::empty()),
            Way::Huge => {
                let mut body = draft.body();
                body.resize(HUGE_BYTES, b' ');
                self.signed(path, body, None)
            }
            Way::Stale => {
                let hour_ago = OffsetDateTime::now_utc() - time::Duration::HOUR;
                let time = hour_ago
                    .format(&time::format_description::well_known::Rfc3339)
                    .unwrap_or_default();
                self.signed_at(path, draft.body(), step.retry_after, time)
            }
            Way::OddTime => {
                self.signed_at(path, draft.body(), step.retry_after, "yesterday".to_owned())
            }
            Way::BadSignature => {
                let mut response = self.send(path, &draft, None);
                let other = self.send(path, &Draft::of("OTHER", "S", "another body"), None);
                if let Some(signature) = other.headers().get("signature") {
                    response.headers_mut().insert("signature", signature.clone());
                }
                response
            }
            way => {
                change(way, &mut draft);
                self.send(path, &draft, step.retry_after)
            }
        }
    }

    fn send(&self, path: &str, draft: &Draft, retry_after: Option<u64>) -> Response<Body> {
        if draft.signed {
            return self.signed(path, draft.body(), retry_after);
        }
        let mut response = Response::new(Body::from(draft.body()));
        retry_after_header(response.headers_mut(), retry_after);
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }

    fn signed(&self, path: &str, body: Vec<u8>, retry_after: Option<u64>) -> Response<Body> {
        self.signed_at(path, body, retry_after, now())
    }

    fn signed_at(
        &self,
        path: &str,
        body: Vec<u8>,
        retry_after: Option<u64>,
        time: String,
    ) -> Response<Body> {
        let client_id = &self.keys.client_id;
        let signature = self.signing_key.sign(path, client_id, &time, &body);
        let mut response = Response::new(Body::from(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        retry_after_header(headers, retry_after);
        for (name, value) in [
            ("client-id", client_id.clone()),
            ("response-time", time),
            ("signature", signature_header(1, &signature)),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=UTF-8");

fn retry_after_header(headers: &mut HeaderMap, seconds: Option<u64>) {
    if let Some(seconds) = seconds {
        headers.insert(RETRY_AFTER, seconds.into());
    }
}

/// Applies a capture and its step to the ledger, and drafts the reply.
fn capture(ledger: &mut super::Ledger, asked: &CaptureRequest, step: &Step) -> Draft {
    let time = now();
    let Way::Code(code) = &step.answer else {
        let acts = step.executes || step.answer.is_of_the_ledger();
        return if acts {
            captured(ledger.capture(asked, &time))
        } else {
            Draft::of("UNKNOWN_EXCEPTION", "U", "not executed")
        };
    };
    if step.executes {
        ledger.capture(asked, &time);
    } else if code == CAPTURE_IN_PROCESS {
        ledger.begin(asked, step.inquiries, &step.resolves_to);
        if ledger.is_final(&asked.id) {
            return captured(ledger.capture(asked, &time));
        }
    } else if step.status_of(code) == "F" && is_about_the_capture(code) {
        if ledger.is_final(&asked.id) {
            return captured(ledger.capture(asked, &time));
        }
        ledger.fail(asked, code);
    }
    scripted(step, code)
}

/// Whether a failure with this code is about the capture itself. The gateway checks access and form
/// before it looks up the id, so an `F` of those classes says nothing about the capture.
fn is_about_the_capture(code: &str) -> bool {
    use crate::domain::capture::class::Class::{Access, Conflict, Request};
    !matches!(Codes::default().class_of(code), Access | Request | Conflict)
}

fn scripted(step: &Step, code: &str) -> Draft {
    Draft { signed: step.signed, ..Draft::of(code, step.status_of(code), "set by the script") }
}

fn captured(verdict: Verdict) -> Draft {
    let mut draft = Draft::of(&verdict.code, verdict.status, message(&verdict.code));
    if let Some(movement) = verdict.movement
        && let Ok(Value::Object(fields)) = serde_json::to_value(&movement)
    {
        draft.fields = fields;
        draft.fields.extend(acquirer(&movement));
    }
    draft
}

/// The fields of a reply about the acquirer.
fn acquirer(movement: &Movement) -> [(String, Value); 2] {
    let info = json!({"acquirerName": "SANDBOX", "acquirerTransactionId": movement.capture_id});
    [
        ("acquirerReferenceNo".to_owned(), json!(movement.capture_id)),
        ("acquirerInfo".to_owned(), info),
    ]
}

fn message(code: &str) -> &'static str {
    match code {
        "SUCCESS" => "success.",
        CAPTURE_IN_PROCESS => "The capture is processing.",
        _ => "set by the ledger",
    }
}

fn inquired(payment_id: &str, payment: &Payment, seen: Option<Vec<(Known, Verdict)>>) -> Draft {
    let Some(seen) = seen else {
        return Draft::of("ORDER_NOT_EXIST", "F", "The order does not exist.");
    };
    let transactions: Vec<Value> =
        seen.iter().map(|(request, verdict)| transaction(request, verdict)).collect();
    let transactions =
        if transactions.is_empty() { Value::Null } else { Value::Array(transactions) };
    let mut draft = Draft::of("SUCCESS", "S", "success.");
    draft.fields.insert("paymentId".to_owned(), json!(payment_id));
    draft.fields.insert("paymentStatus".to_owned(), json!("SUCCESS"));
    if let Some(authorized) = payment.authorized {
        draft.fields.insert("paymentAmount".to_owned(), json!(authorized));
    }
    if let Some(until) = &payment.auth_expiry_time {
        draft.fields.insert("authExpiryTime".to_owned(), json!(until));
    }
    if let Some(status) = &payment.auth_review_status {
        draft.fields.insert("authReviewStatus".to_owned(), json!(status));
    }
    draft.fields.insert("transactions".to_owned(), transactions);
    draft
}

fn transaction(request: &Known, verdict: &Verdict) -> Value {
    let status = match request.state {
        Stage::Captured(_) => "SUCCESS",
        Stage::Failed(_) => "FAIL",
        Stage::InProcess { .. } | Stage::Unseen => "PROCESSING",
    };
    let mut item = json!({
        "transactionType": "CAPTURE",
        "transactionStatus": status,
        "transactionRequestId": request.asked.id,
        "transactionAmount": request.asked.amount,
        "transactionResult": {
            "resultCode": verdict.code,
            "resultStatus": verdict.status,
            "resultMessage": message(&verdict.code),
        },
    });
    if let Some(movement) = &verdict.movement
        && let Some(item) = item.as_object_mut()
    {
        item.insert("transactionId".to_owned(), json!(movement.capture_id));
        item.insert("transactionTime".to_owned(), json!(movement.capture_time));
        item.extend(acquirer(movement));
    }
    item
}

/// Applies the faults that leave a reply readable.
fn change(way: &Way, draft: &mut Draft) {
    let mut put = |name: &str, value: Value| {
        if let Some(field) = draft.fields.get_mut(name) {
            *field = value;
        }
    };
    match way {
        Way::OtherId => put("captureRequestId", json!("another-id")),
        Way::OtherPayment => put("paymentId", json!("another-payment")),
        Way::OtherAmount => put("captureAmount", json!({"currency": "HKD", "value": "1"})),
        Way::UnknownStatus => "X".clone_into(&mut draft.status),
        Way::Unsigned => draft.signed = false,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inquiry_shows_the_fields_of_the_authorization() {
        let payment = Payment {
            auth_expiry_time: Some("2026-12-01T00:00:00Z".to_owned()),
            auth_review_status: Some("PROCESSING".to_owned()),
            ..Payment::default()
        };
        let fields = inquired("p", &payment, Some(Vec::new())).fields;
        assert_eq!(fields["authExpiryTime"], "2026-12-01T00:00:00Z");
        assert_eq!(fields["authReviewStatus"], "PROCESSING");
        assert_eq!(fields["transactions"], Value::Null);
        assert!(!inquired("p", &Payment::default(), None).fields.contains_key("authReviewStatus"));
    }
}
