//! The gateway's client: it signs a request, posts it, verifies the reply and returns it. One call
//! is one request: nothing is retried here, and no redirect is followed.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use reqwest::{
    RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use time::{
    OffsetDateTime,
    format_description::well_known::{Rfc2822, Rfc3339},
};

use super::{
    flaw::{Flaw, single},
    signing::{SigningKey, VerifyingKeys, signature_header, signing_text},
    signing_pool::SigningPool,
    wire::{self, Body},
};
use crate::domain::{
    capture::reply::{CaptureBody, InquiryBody, InquiryReply, NoAnswer, Reply, Signature},
    job::Job,
    money::shorten,
    time::epoch_ms as epoch_ms_of,
    time::parse as parse_time,
};

/// The longest time for connecting, which is also limited to half of the call's time-out. A call
/// that fails while connecting was certainly not sent.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(3);

/// A reply that was signed this long before its request may be the reply to an earlier call.
const STALE_MS: i64 = 5 * 60 * 1000;
/// No signed reply has given the gateway's time yet.
const UNKNOWN: i64 = i64::MIN;

/// The reason of a call that was not sent because no thread could sign it.
pub(crate) const NOT_SIGNED: &str = "the call could not be signed";

/// How many characters of an unexpected encoding's name are reported.
const ENCODING_CHARS_MAX: usize = 32;

static CLIENT_ID: HeaderName = HeaderName::from_static("client-id");
static REQUEST_TIME: HeaderName = HeaderName::from_static("request-time");
static RESPONSE_TIME: HeaderName = HeaderName::from_static("response-time");
static SIGNATURE: HeaderName = HeaderName::from_static("signature");
static AGENT_TOKEN: HeaderName = HeaderName::from_static("agent-token");

/// Where the gateway is, and with which credentials it is called.
pub struct GatewayOptions {
    /// Scheme and host, and a path that comes before the others if there is one.
    pub base_url: String,
    /// The path of captures.
    pub capture_path: String,
    /// The path of inquiries.
    pub inquiry_path: String,
    /// The merchant's client id.
    pub client_id: String,
    /// The version of the merchant's key that signs.
    pub key_version: u32,
    /// The merchant's private key.
    pub signing_key: SigningKey,
    /// The gateway's public keys.
    pub verifying_keys: VerifyingKeys,
    /// The `agent-token` header, which only integrators need.
    pub agent_token: Option<String>,
    /// The time-out of a capture, connecting included.
    pub timeout: Duration,
    /// The time-out of an inquiry, connecting included.
    pub inquiry_timeout: Duration,
    /// The URL of an HTTP proxy that tunnels to an `https://` gateway.
    pub proxy: Option<String>,
}

/// Why no client can be made from the options.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL and a path do not form a URL.
    #[error("gateway.base_url and {0} do not form a URL that can be called")]
    Url(&'static str),
    /// A value can't be sent in an HTTP header.
    #[error("gateway.{0} contains characters that are not allowed in an HTTP header")]
    Header(&'static str),
    /// The setting is not the URL of a proxy.
    #[error("gateway.proxy is not the URL of a proxy (its value is not shown)")]
    Proxy,
    /// TLS or its root certificates can't be set up.
    #[error("the HTTP client can't be created: {0}")]
    Http(String),
    /// No thread could be started for signing.
    #[error("no thread can be started for signing: {0}")]
    Thread(std::io::Error),
}

/// The gateway's client, with one pool of connections.
pub struct Gateway {
    http: reqwest::Client,
    capture: Endpoint,
    inquiry: Endpoint,
    client_id: String,
    key_version: u32,
    headers: HeaderMap,
    signing_pool: SigningPool,
    verifying_keys: VerifyingKeys,
    clock_ahead_ms: AtomicI64,
}

struct Endpoint {
    url: Url,
    path: String,
    timeout: Duration,
}

/// A call that is signed but not sent. The caller can check once more, after all waits, whether it
/// may still be sent.
pub struct SignedCall<'g, B> {
    gateway: &'g Gateway,
    endpoint: &'g Endpoint,
    /// The `request-time` header, in epoch milliseconds.
    requested_ms: i64,
    request: RequestBuilder,
    reply: PhantomData<fn() -> B>,
}

impl Gateway {
    /// Creates a client, which connects when it is first used.
    ///
    /// # Errors
    /// A setting can't be used.
    pub fn new(options: GatewayOptions) -> Result<Self, ClientError> {
        let GatewayOptions { base_url, client_id, agent_token, .. } = &options;
        let endpoint = |name, path: &str, timeout| {
            let url = Url::parse(&format!("{}{path}", base_url.trim_end_matches('/')))
                .ok()
                .filter(|url| url.has_host())
                .ok_or(ClientError::Url(name))?;
            Ok(Endpoint { path: url.path().to_owned(), url, timeout })
        };
        let capture = endpoint("gateway.capture_path", &options.capture_path, options.timeout)?;
        let inquiry =
            endpoint("gateway.inquiry_path", &options.inquiry_path, options.inquiry_timeout)?;
        let value =
            |name, text: &str| HeaderValue::from_str(text).map_err(|_| ClientError::Header(name));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
        headers.insert(&CLIENT_ID, value("client_id", client_id)?);
        if let Some(token) = agent_token {
            let mut token = value("agent_token", token)?;
            token.set_sensitive(true);
            headers.insert(&AGENT_TOKEN, token);
        }
        let mut http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            // With HTTP/2 all calls share one connection: if it is lost, every call in flight is in
            // doubt, and the peer's limit of streams makes calls wait inside the client, unsent.
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT_MAX.min(options.timeout / 2))
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(20))
            .user_agent(concat!("capture-worker/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &options.proxy {
            // For `https://` only, so always by CONNECT. A failure before the tunnel is open and
            // its TLS is up is an error of connecting: nothing was sent.
            http = http.proxy(reqwest::Proxy::https(proxy).map_err(|_| ClientError::Proxy)?);
        }
        let http = http.build().map_err(|error| ClientError::Http(error.to_string()))?;
        Ok(Self {
            http,
            capture,
            inquiry,
            client_id: client_id.clone(),
            key_version: options.key_version,
            headers,
            signing_pool: SigningPool::start(options.signing_key).map_err(ClientError::Thread)?,
            verifying_keys: options.verifying_keys,
            clock_ahead_ms: AtomicI64::new(UNKNOWN),
        })
    }

    /// Signs a capture without sending it. Urgent calls are signed before the others. `None`: a
    /// signing thread has ended, which is a bug.
    pub async fn sign_capture(
        &self,
        job: &Job,
        is_urgent: bool,
    ) -> Option<SignedCall<'_, CaptureBody>> {
        self.sign(&self.capture, wire::capture_body(job), is_urgent).await
    }

    /// Signs an inquiry about a payment's captures without sending it. `None` as for captures.
    pub async fn sign_inquiry(&self, payment_id: &str) -> Option<SignedCall<'_, InquiryBody>> {
        self.sign(&self.inquiry, wire::inquiry_body(payment_id), false).await
    }

    /// Inquires about a payment's captures.
    pub async fn inquire(&self, payment_id: &str) -> InquiryReply {
        match self.sign_inquiry(payment_id).await {
            Some(call) => call.send().await,
            None => Reply::NotSent(NOT_SIGNED.to_owned()),
        }
    }

    /// The time-out of a capture, connecting included.
    #[must_use]
    pub const fn capture_timeout(&self) -> Duration {
        self.capture.timeout
    }

    /// The time-out of an inquiry, connecting included.
    #[must_use]
    pub const fn inquiry_timeout(&self) -> Duration {
        self.inquiry.timeout
    }

    /// Inquires about a payment, and also returns why the reply can't be verified.
    pub async fn try_out(&self, payment_id: &str) -> TriedOut {
        let (reply, flaw) = match self.sign_inquiry(payment_id).await {
            Some(call) => call.send_and_examine().await,
            None => (Reply::NotSent(NOT_SIGNED.to_owned()), None),
        };
        TriedOut { reply, flaw }
    }

    async fn sign<'g, B>(
        &'g self,
        endpoint: &'g Endpoint,
        body: Vec<u8>,
        is_urgent: bool,
    ) -> Option<SignedCall<'g, B>> {
        let requested_ms = epoch_ms();
        let time = requested_ms.to_string();
        let text = signing_text(&endpoint.path, &self.client_id, &time, &body);
        let signature = self.signing_pool.sign(text, is_urgent).await?;
        let request = self
            .http
            .post(endpoint.url.clone())
            .headers(self.headers.clone())
            .header(&REQUEST_TIME, time)
            .header(&SIGNATURE, signature_header(self.key_version, &signature))
            .body(body);
        Some(SignedCall { gateway: self, endpoint, requested_ms, request, reply: PhantomData })
    }

    async fn read<B: Body>(
        &self,
        endpoint: &Endpoint,
        mut response: Response,
        requested_ms: i64,
    ) -> Result<(Reply<B>, Option<Flaw>), Reply<B>> {
        let retry_after = retry_after(response.headers());
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            return Err(Reply::NoAnswer(NoAnswer::HttpStatus { status, retry_after }));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
            if bytes.len() + chunk.len() > B::BYTES_MAX {
                return Err(Reply::NoAnswer(NoAnswer::TooLong(B::BYTES_MAX)));
            }
            bytes.extend_from_slice(&chunk);
        }
        let flaw = self.verify(endpoint, response.headers(), requested_ms, &bytes).err();
        let signature = match flaw {
            None => Signature::Good,
            Some(Flaw::NoSignature) => Signature::Missing,
            Some(Flaw::Stale) => Signature::Stale,
            Some(_) => Signature::Bad,
        };
        let reply = wire::read(&bytes, signature, retry_after);
        Ok((with_encoding(reply, response.headers()), flaw))
    }

    /// Checks that the gateway signed a reply to a call of ours. So the signature is verified with
    /// our own client id.
    fn verify(
        &self,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        requested_ms: i64,
        body: &[u8],
    ) -> Result<(), Flaw> {
        let signature = single(headers, &SIGNATURE)?
            .filter(|text| !text.trim().is_empty())
            .ok_or(Flaw::NoSignature)?;
        let time = single(headers, &RESPONSE_TIME)?.ok_or(Flaw::NoTime)?;
        let client_id = single(headers, &CLIENT_ID)?;
        if client_id.is_some_and(|id| id != self.client_id) {
            return Err(Flaw::OtherClient);
        }
        let keys = &self.verifying_keys;
        if !keys.verify(&endpoint.path, &self.client_id, time, body, signature) {
            return Err(Flaw::Key);
        }
        let ahead_ms = parse_time(time).map(|time| epoch_ms_of(time).saturating_sub(requested_ms));
        self.clock_ahead_ms.store(ahead_ms.unwrap_or(UNKNOWN), Ordering::Relaxed);
        if ahead_ms.is_some_and(|ahead_ms| ahead_ms >= -STALE_MS) {
            return Ok(());
        }
        let requested =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(requested_ms) * 1_000_000);
        let requested = requested.ok().and_then(|time| time.format(&Rfc3339).ok());
        let (answered, requested) = (shorten(time), requested.unwrap_or_default());
        tracing::warn!(
            answered,
            requested,
            "stale gateway reply: response-time does not fit the request, check NTP"
        );
        Err(Flaw::Stale)
    }

    /// How many milliseconds the gateway's clock was ahead of ours in its last signed reply. Most
    /// replies give whole seconds only.
    #[must_use]
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        Some(self.clock_ahead_ms.load(Ordering::Relaxed)).filter(|ms| *ms != UNKNOWN)
    }
}

#[expect(private_bounds, reason = "only the two bodies of this module can be read")]
impl<B: Body> SignedCall<'_, B> {
    /// Sends the request, once.
    pub async fn send(self) -> Reply<B> {
        self.send_and_examine().await.0
    }

    /// Also returns why the reply can't be verified.
    async fn send_and_examine(self) -> (Reply<B>, Option<Flaw>) {
        let Self { gateway, endpoint, requested_ms, request, .. } = self;
        let exchange = async {
            let response = request.send().await.map_err(|error| of_send(&error))?;
            gateway.read(endpoint, response, requested_ms).await
        };
        match tokio::time::timeout(endpoint.timeout, exchange).await {
            Ok(Ok(examined)) => examined,
            Ok(Err(reply)) => (reply, None),
            Err(_) => (Reply::NoAnswer(NoAnswer::TimedOut(endpoint.timeout)), None),
        }
    }
}

/// The result of an inquiry that tests whether the gateway can be reached and its replies verified.
#[derive(Debug)]
pub struct TriedOut {
    /// The reply to the inquiry.
    pub reply: InquiryReply,
    /// Why the reply could not be verified.
    pub flaw: Option<Flaw>,
}

/// Adds the content encoding to the reason of an unreadable body, because the request asked for
/// none.
fn with_encoding<B>(reply: Reply<B>, headers: &HeaderMap) -> Reply<B> {
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    match (reply, encoding) {
        (Reply::NoAnswer(NoAnswer::Unreadable(shape)), Some(encoding)) => {
            let encoding: String = encoding.chars().take(ENCODING_CHARS_MAX).collect();
            let shape = format!("{shape}; its `content-encoding` header is {encoding}");
            Reply::NoAnswer(NoAnswer::Unreadable(shape))
        }
        (reply, _) => reply,
    }
}

/// Only what fails while connecting (refused, DNS, TLS handshake) was certainly not sent.
fn of_send<B>(error: &reqwest::Error) -> Reply<B> {
    if error.is_connect() { Reply::NotSent(root_cause(error)) } else { lost(error) }
}

fn lost<B>(error: &reqwest::Error) -> Reply<B> {
    Reply::NoAnswer(NoAnswer::ConnectionLost(root_cause(error)))
}

/// The innermost error: what happened, without the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Reads `Retry-After`, which is a number of seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    (date - OffsetDateTime::now_utc()).try_into().ok()
}

fn epoch_ms() -> i64 {
    epoch_ms_of(OffsetDateTime::now_utc())
}
