//! `capture-worker check`: prints the settings and tests every service that a worker needs.

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Exit,
    desk::plain,
    print_error, print_json, print_line,
    settings::{self, Service},
};
use crate::{
    broker::{BrokerOptions, Session},
    config::Settings,
    domain::{
        capture::{
            class::{Class, Codes},
            reply::{GatewayResult, InquiryReply, Reply, Status},
        },
        duration,
    },
    gateway::{Flaw, Gateway, TriedOut},
    lease::{Leases, Role},
};

/// How long Redis may take to accept a connection, and again to run the scripts.
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);
/// A paymentId that does not exist. An inquiry about it tests the address, the keys and the
/// signatures, and moves no money.
const NO_PAYMENT: &str = "capture-worker-check";

#[derive(clap::Args)]
pub(super) struct Check {
    /// Print one JSON document with the settings, the warnings and the result of each test
    #[arg(long)]
    json: bool,
}

/// The result of testing one service: what works, or what is wrong and what to do.
struct Finding {
    what: &'static str,
    result: Result<String, String>,
}

impl Check {
    pub(super) async fn run(self, config: Option<&Path>) -> Exit {
        let settings = match settings::load(config, Service::ALL) {
            Ok(settings) => settings,
            Err(exit) => return exit,
        };
        let parts = (
            settings::broker_options(&settings),
            settings::leases(&settings, Role::Command),
            settings::gateway(&settings),
        );
        let (broker, leases, gateway) = match parts {
            (Ok(broker), Ok(leases), Ok(gateway)) => (broker, leases, gateway),
            (broker, leases, gateway) => {
                self.show(&settings, &[]);
                for error in
                    [broker.err(), leases.err(), gateway.err()].into_iter().flatten().flatten()
                {
                    print_error(&format!("error: {error}"));
                }
                return Exit::Usage;
            }
        };
        let (broker, redis, gateway) =
            tokio::join!(try_broker(&broker), try_redis(&leases), try_gateway(&gateway));
        let findings = [
            Finding { what: "broker", result: broker },
            Finding { what: "redis", result: redis },
            Finding { what: "gateway", result: gateway },
        ];
        self.show(&settings, &findings);
        if findings.iter().all(|finding| finding.result.is_ok()) {
            Exit::Done
        } else {
            Exit::Failed
        }
    }

    fn show(&self, settings: &Settings, findings: &[Finding]) {
        let warnings = settings.warnings();
        if self.json {
            let text = |finding: &Finding| match &finding.result {
                Ok(text) => serde_json::json!({"ok": true, "says": text}),
                Err(text) => serde_json::json!({"ok": false, "says": text}),
            };
            let found: serde_json::Map<_, _> =
                findings.iter().map(|finding| (finding.what.to_owned(), text(finding))).collect();
            let shown: serde_json::Map<_, _> =
                settings.describe().into_iter().map(|(key, value)| (key, value.into())).collect();
            let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            let document =
                serde_json::json!({"settings": shown, "warnings": warnings, "checks": found});
            return print_json(&document);
        }
        for (key, value) in settings.describe() {
            print_line(&format!("{key} = {value}"));
        }
        for warning in warnings {
            print_error(&format!("warning: {warning}"));
        }
        for Finding { what, result } in findings {
            match result {
                Ok(text) => print_line(&format!("{what}: ok, {}", plain(text))),
                Err(text) => print_line(&format!("{what}: FAILED, {}", plain(text))),
            }
        }
    }
}

async fn try_broker(options: &BrokerOptions) -> Result<String, String> {
    let session = Session::open(options).await.map_err(|error| error.to_string())?;
    let rights = session.missing_permissions().await;
    session.close().await;
    match rights {
        Ok(missing) if missing.is_empty() => {
            Ok("connected; exchanges and queues match, and no permission is missing".into())
        }
        Ok(missing) => Err(format!(
            "connected, but this user lacks permissions that a worker needs:\n  {}",
            missing.join("\n  ")
        )),
        Err(error) => Err(format!("connected, but cannot test the user's permissions: {error}")),
    }
}

async fn try_redis(leases: &Leases) -> Result<String, String> {
    match tokio::time::timeout(REDIS_TIMEOUT, leases.try_out()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.reason().to_owned()),
        Err(_) => return Err(format!("no reply within {} s", REDIS_TIMEOUT.as_secs())),
    }
    // Then connect as a worker does, which also finds out whether leases can be relied on.
    let mut up = leases.up();
    let is_up = tokio::select! {
        () = leases.keep_connected(CancellationToken::new()) => false,
        up = tokio::time::timeout(REDIS_TIMEOUT, up.wait_for(|up| *up)) => matches!(up, Ok(Ok(_))),
    };
    if !is_up {
        return Err(leases.unavailable_reason());
    }
    let tried = "every script ran and left no key behind";
    let mut found = match leases.withheld().await {
        Some(why) => format!("{tried}, but no lease can be acquired now: {why}"),
        None => format!("leases can be acquired; {tried}"),
    };
    if let Some(policy) = leases.eviction_policy() {
        found.push_str(&format!(
            "; warning: maxmemory-policy is {policy}, so Redis may evict recorded outcomes and \
             sent markers: set noeviction"
        ));
    }
    Ok(found)
}

async fn try_gateway(gateway: &Gateway) -> Result<String, String> {
    let TriedOut { reply, flaw } = gateway.try_out(NO_PAYMENT).await;
    let Reply::Answered(answer) = reply else { return Err(describe(&reply)) };
    let GatewayResult { status, code, .. } = &answer.result;
    let is_access = *status == Status::F && Codes::default().class_of(code) == Class::Access;
    match (flaw, status) {
        (None, _) if is_access => Err(format!("authenticated, but access is denied: {code}")),
        (None, Status::S | Status::F) => Ok(format!(
            "credentials accepted; response signature verified{}",
            clocks(gateway.clock_ahead_ms())
        )),
        (None, _) => Ok(format!(
            "response signature verified; the inquiry ended with {code}{}",
            clocks(gateway.clock_ahead_ms())
        )),
        (Some(Flaw::NoSignature), _) if is_access => Err(format!(
            "credentials rejected ({code}, unsigned): check gateway.client_id, gateway.key_version \
             and gateway.private_key"
        )),
        (Some(flaw @ (Flaw::Key | Flaw::OtherClient | Flaw::Stale)), _) => {
            Err(format!("cannot trust the reply ({code}): {flaw}"))
        }
        (Some(flaw), _) => Err(format!(
            "cannot trust the reply ({code}): {flaw}. Check whether a proxy or a firewall changes \
             replies, and whether gateway.base_url is the address of the gateway"
        )),
    }
}

/// How far the gateway's clock is from ours, for people. Most gateways report whole seconds, so a
/// difference below a second may be rounding.
fn clocks(ahead_ms: Option<i64>) -> String {
    let Some(ahead_ms) = ahead_ms else { return String::new() };
    let apart = duration::show(Duration::from_millis(ahead_ms.unsigned_abs()));
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("; the gateway's clock is {apart} {side} ours")
}

fn describe(reply: &InquiryReply) -> String {
    match reply {
        Reply::NotSent(reason) => format!("cannot reach the gateway: {reason}"),
        Reply::NoAnswer(reason) => format!("no valid reply from the gateway: {reason}"),
        Reply::Answered(_) => "the gateway replied".into(),
    }
}
