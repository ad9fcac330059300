//! What Redis and the gateway know about one capture and its family of fresh ids.

use crate::{
    domain::{
        capture::{
            family::fresh_id,
            reply::{InquiryReply, Reply, Signature, Standing, Status, Transaction},
        },
        money::Money,
    },
    gateway::Gateway,
    lease::{Inspection, Leases},
};

/// How many generations of ancestors and of descendants are searched. Each generation is a replay
/// by an operator, so real families are much smaller.
const GENERATIONS_MAX: usize = 32;

/// What is known about one id.
#[derive(Clone, Debug)]
pub struct StatusOf {
    /// What Redis knows; an error if Redis is unavailable.
    pub redis: Result<Inspection, String>,
    /// What the gateway shows, if it knows the id; an error if the reply proves nothing.
    pub gateway: Result<Option<GatewayStatus>, String>,
    /// Whether the gateway replied at all.
    pub is_answered: bool,
    /// The ancestors, the oldest first, then the descendants.
    pub family: Vec<Relative>,
}

/// What the gateway shows about an id: the transaction of it that says most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    /// What the transaction proves.
    pub standing: Standing,
    /// The status as the gateway wrote it: SUCCESS, FAIL, PROCESSING or another one.
    pub status: String,
    /// The result code, if there is one.
    pub code: Option<String>,
    /// The gateway's id of the capture.
    pub capture_id: Option<String>,
    /// The amount, if it is readable.
    pub amount: Option<Money>,
    /// The time, as the gateway wrote it.
    pub time: Option<String>,
}

/// Another id of the same family: an ancestor or a descendant.
#[derive(Clone, Debug)]
pub struct Relative {
    /// The captureRequestId of the relative.
    pub capture_request_id: String,
    /// Whether it is an ancestor; otherwise it is a descendant.
    pub is_ancestor: bool,
    /// What the gateway shows about it, if anything.
    pub gateway: Option<GatewayStatus>,
    /// What Redis knows about it; `None` if Redis is unavailable.
    pub redis: Option<Inspection>,
}

impl StatusOf {
    /// Asks Redis and the gateway about an id of a payment and about its family.
    pub async fn ask(gateway: &Gateway, leases: &Leases, payment_id: &str, id: &str) -> Self {
        let reply = gateway.inquire(payment_id).await;
        let is_answered = matches!(reply, Reply::Answered(_));
        let transactions = transactions(reply, payment_id);
        let redis = leases.inspect(payment_id, id).await.map_err(|error| error.to_string());
        let items = transactions.as_deref().unwrap_or_default();
        let mut family = ancestors(items, id);
        let mut child = fresh_id(id);
        for _ in 0..GENERATIONS_MAX {
            let gateway = shown(items, &child);
            let redis = leases.inspect(payment_id, &child).await.ok();
            let next = fresh_id(&child);
            // An unknown child is not the end of the family: the gateway may have refused it before
            // it read the id, and an operator may then have replayed it.
            let is_known = gateway.is_some()
                || redis.as_ref().is_some_and(|redis| redis.sent || redis.recorded.is_some());
            if is_known {
                let capture_request_id = child;
                family.push(Relative { capture_request_id, is_ancestor: false, gateway, redis });
            }
            child = next;
        }
        for ancestor in family.iter_mut().filter(|relative| relative.is_ancestor) {
            ancestor.redis = leases.inspect(payment_id, &ancestor.capture_request_id).await.ok();
        }
        let gateway = transactions.as_ref().map(|items| shown(items, id)).map_err(Clone::clone);
        Self { redis, gateway, is_answered, family }
    }
}

/// The ancestors of an id, the oldest first. The id of a child is a hash and does not reveal its
/// parent. But the gateway lists every id of the payment, and each id has exactly one child.
fn ancestors(items: &[Transaction], id: &str) -> Vec<Relative> {
    let mut ancestors: Vec<Relative> = Vec::new();
    let mut youngest = id.to_owned();
    while ancestors.len() < GENERATIONS_MAX {
        let ids = items.iter().filter_map(|item| item.request_id.as_deref());
        let Some(parent) = ids.into_iter().find(|id| fresh_id(id) == youngest) else { break };
        parent.clone_into(&mut youngest);
        ancestors.push(Relative {
            capture_request_id: parent.to_owned(),
            is_ancestor: true,
            gateway: shown(items, parent),
            redis: None,
        });
    }
    ancestors.reverse();
    ancestors
}

/// The transactions in a signed reply to an inquiry, or why there are none.
fn transactions(reply: InquiryReply, payment_id: &str) -> Result<Vec<Transaction>, String> {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Err(format!("cannot reach the gateway: {reason}")),
        Reply::NoAnswer(reason) => return Err(reason.to_string()),
    };
    let code = &answer.result.code;
    if answer.signature != Signature::Good {
        return Err(format!("the reply is not signed by the gateway: {code}"));
    }
    if answer.result.status != Status::S {
        return Err(format!("the inquiry ended with {code}"));
    }
    match answer.body.payment_id {
        Some(answered) if answered == payment_id => {}
        Some(_) => return Err("the reply is about another payment".into()),
        None => return Err("the reply names no payment".into()),
    }
    answer.body.transactions.ok_or_else(|| "the reply has no readable transactions".into())
}

/// What the transaction of an id that says most shows.
fn shown(items: &[Transaction], id: &str) -> Option<GatewayStatus> {
    Transaction::most_telling(items, id).map(|item| GatewayStatus {
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
    fn the_ancestors_of_an_id_are_found_among_the_transactions() {
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
        let found = ancestors(&items, &grandchild);
        let ids: Vec<&str> = found.iter().map(|one| one.capture_request_id.as_str()).collect();
        assert_eq!(ids, ["first", child.as_str()]);
        assert_eq!(found[1].gateway.as_ref().unwrap().status, "SUCCESS");
        assert!(ancestors(&items, "other").is_empty());
    }
}
