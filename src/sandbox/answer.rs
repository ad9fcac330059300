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
use serde_json::Value;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use super::{
    Sandbox, Step, Way,
    draft::{Draft, capture, change, inquired, scripted},
    gate::{Admitted, CallRefused, Gate},
    ledger::PostedCapture,
    peer::Peer,
    recorder::CallRecord,
    script::Interface,
};
use crate::{domain::time::epoch_ms, gateway::signing::signature_header};

/// The largest request body that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// The length of a reply body that the worker refuses to read, in bytes.
const HUGE_BYTES: usize = 1024 * 1024;

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
        Err(CallRefused { code, message, signed }) => {
            tracing::info!(%path, code, why = message, "call refused");
            let draft = Draft { signed, ..Draft::of(code, "F", message) };
            sandbox.send(&path, &draft, None)
        }
    }
}

impl Sandbox {
    async fn on_capture(&self, path: &str, peer: &Peer, asked: &PostedCapture) -> Response<Body> {
        let _in_flight = self.recorder.begin(&asked.payment_id, &asked.id);
        let step = self.with_state(|state| {
            state.ledger.count_post(asked);
            state.next_step(Interface::Capture, &asked.payment_id, Some(&asked.id))
        });
        tokio::time::sleep(self.options.latency + step.delay()).await;
        let draft = self.with_state(|state| capture(&mut state.ledger, asked, &step, &now()));
        self.record("capture", &asked.payment_id, Some(&asked.id), &step, &draft);
        self.send_by(path, peer, &step, draft).await
    }

    async fn on_inquiry(&self, path: &str, peer: &Peer, payment_id: &str) -> Response<Body> {
        let step = self.with_state(|state| state.next_step(Interface::Inquiry, payment_id, None));
        tokio::time::sleep(self.options.latency + step.delay()).await;
        let (seen, payment) = self.with_state(|state| {
            let seen = state.ledger.inquire(payment_id, &now());
            (seen, state.ledger.payments.get(payment_id).cloned().unwrap_or_default())
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
        self.recorder.record(CallRecord {
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
                let time = hour_ago.format(&Rfc3339).unwrap_or_default();
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

/// The current time in the gateway's form: ISO 8601 with the offset +08:00.
fn now() -> String {
    let utc = OffsetDateTime::now_utc();
    let zone = UtcOffset::from_hms(8, 0, 0).unwrap_or(UtcOffset::UTC);
    let now = utc.replace_nanosecond(0).unwrap_or(utc).to_offset(zone);
    now.format(&Rfc3339).unwrap_or_default()
}
