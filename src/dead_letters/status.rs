//! What is known of one capture: by Redis, by the gateway, and of its family of fresh ids.

use crate::{
    domain::{
        money::Money,
        replay::fresh_id,
        reply::{InquiryReply, Reply, Signature, Standing, Status, Transaction},
    },
    gateway::Gateway,
    lease::{Inspection, Leases},
};

/// A family ends somewhere: each generation is an operator's replay.
const GENERATIONS_MAX: usize = 32;

/// What is known of one id.
#[derive(Clone, Debug)]
pub struct StatusOf {
    /// By Redis; an error if it is away.
    pub redis: Result<Inspection, String>,
    /// By the gateway; an error says why it shows nothing.
    pub gateway: Result<Option<Shown>, String>,
    /// Whether the gateway answered at all.
    pub is_answered: bool,
    /// Its forebears, the first one first, then its descendants.
    pub family: Vec<Relative>,
}

/// What the gateway shows of an id: the best of its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What it says.
    pub standing: Standing,
    /// SUCCESS, FAIL, PROCESSING, …
    pub status: String,
    /// Of a failure.
    pub code: Option<String>,
    /// The gateway's id of the capture.
    pub capture_id: Option<String>,
    /// How much, if it can be read.
    pub amount: Option<Money>,
    /// When, as the gateway wrote it.
    pub time: Option<String>,
}

/// Another id of the family.
#[derive(Clone, Debug)]
pub struct Relative {
    /// Its id.
    pub capture_request_id: String,
    /// Whether it is older than the id that is asked about.
    pub is_forebear: bool,
    /// What the gateway shows of it.
    pub gateway: Option<Shown>,
    /// What Redis knows of it, if it answers.
    pub redis: Option<Inspection>,
}

impl StatusOf {
    /// Asks Redis and the gateway about an id of a payment.
    pub async fn ask(gateway: &Gateway, leases: &Leases, payment_id: &str, id: &str) -> Self {
        let reply = gateway.inquire(payment_id).await;
        let is_answered = matches!(reply, Reply::Answered(_));
        let transactions = transactions(reply, payment_id);
        let redis = leases.inspect(payment_id, id).await.map_err(|away| away.to_string());
        let items = transactions.as_deref().unwrap_or_default();
        let mut family = forebears(items, id);
        let mut child = fresh_id(id);
        for _ in 0..GENERATIONS_MAX {
            let gateway = shown(items, &child);
            let redis = leases.inspect(payment_id, &child).await.ok();
            let next = fresh_id(&child);
            // One that nobody knows is no end: the gateway may have refused it before it looked at the id.
            let is_known = gateway.is_some()
                || redis.as_ref().is_some_and(|redis| redis.sent || redis.known.is_some());
            if is_known {
                let capture_request_id = child;
                family.push(Relative { capture_request_id, is_forebear: false, gateway, redis });
            }
            child = next;
        }
        for forebear in family.iter_mut().filter(|relative| relative.is_forebear) {
            forebear.redis = leases.inspect(payment_id, &forebear.capture_request_id).await.ok();
        }
        let gateway = transactions.as_ref().map(|items| shown(items, id)).map_err(Clone::clone);
        Self { redis, gateway, is_answered, family }
    }
}

/// A child's id tells nothing of its parent's; but the gateway lists all ids of the payment, and each has one child.
fn forebears(items: &[Transaction], id: &str) -> Vec<Relative> {
    let mut forebears: Vec<Relative> = Vec::new();
    let mut youngest = id.to_owned();
    while forebears.len() < GENERATIONS_MAX {
        let ids = items.iter().filter_map(|item| item.request_id.as_deref());
        let Some(parent) = ids.into_iter().find(|id| fresh_id(id) == youngest) else { break };
        parent.clone_into(&mut youngest);
        forebears.push(Relative {
            capture_request_id: parent.to_owned(),
            is_forebear: true,
            gateway: shown(items, parent),
            redis: None,
        });
    }
    forebears.reverse();
    forebears
}

/// The transactions that a signed inquiry shows, or why it shows none.
fn transactions(reply: InquiryReply, payment_id: &str) -> Result<Vec<Transaction>, String> {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Err(format!("it can't be reached: {reason}")),
        Reply::NoAnswer(reason) => return Err(reason.to_string()),
    };
    let code = &answer.result.code;
    if answer.signature != Signature::Good {
        return Err(format!("its answer is not signed by it: {code}"));
    }
    if answer.result.status != Status::S {
        return Err(format!("it answers {code}"));
    }
    match answer.body.payment_id {
        Some(answered) if answered == payment_id => {}
        Some(_) => return Err("its answer is about another payment".into()),
        None => return Err("its answer names no payment".into()),
    }
    answer.body.transactions.ok_or_else(|| "its answer has no readable transactions".into())
}

/// SUCCESS beats PROCESSING beats FAIL. An item that contradicts itself is shown, and proves no end.
fn shown(items: &[Transaction], id: &str) -> Option<Shown> {
    let ours = items.iter().filter(|item| item.request_id.as_deref() == Some(id));
    let rank = |item: &&Transaction| match item.standing() {
        Standing::Captured => 0,
        Standing::Unclear => 1,
        Standing::InProcess => 2,
        Standing::Failed => 3,
    };
    ours.min_by_key(rank).map(|item| Shown {
        standing: item.standing(),
        status: item.status.clone().unwrap_or_default(),
        code: item.result.as_ref().map(|result| result.code.clone()),
        capture_id: item.id.clone(),
        amount: item.amount.clone().and_then(Result::ok),
        time: item.time.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_from_any_of_its_ids() {
        let child = fresh_id("first");
        let grandchild = fresh_id(&child);
        let item = |id: &str, status: &str| Transaction {
            kind: Some("CAPTURE".into()),
            request_id: Some(id.into()),
            status: Some(status.into()),
            ..Transaction::default()
        };
        let items = [
            item(&child, "FAIL"),
            item("other", "SUCCESS"),
            item("first", "FAIL"),
            item(&child, "SUCCESS"),
        ];
        let found = forebears(&items, &grandchild);
        let ids: Vec<&str> = found.iter().map(|one| one.capture_request_id.as_str()).collect();
        assert_eq!(ids, ["first", child.as_str()]);
        assert_eq!(found[1].gateway.as_ref().unwrap().status, "SUCCESS");
        assert!(forebears(&items, "other").is_empty());
    }
}
