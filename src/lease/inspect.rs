//! Reads what Redis holds about one capture and its payment, for operators. Nothing is changed.

use super::{
    Leases, Unavailable,
    claim::{PaymentKeys, TOKEN_CHARS},
    record,
};
use crate::domain::capture::outcome::FinalOutcome;

/// The state of one capture and its payment in Redis. The keys are read one after the other, so
/// they may be from slightly different moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The recorded outcome of the id, if there is one.
    pub recorded: Option<FinalOutcome>,
    /// Whether the id has a sent marker: its capture may have been sent.
    pub sent: bool,
    /// The remaining time of the payment's lease, in milliseconds, if a worker has it.
    pub lease_left_ms: Option<i64>,
    /// How many workers are in the waiting list for the lease.
    pub waiting: u64,
    /// The in-doubt block of the payment, if one of its captures is in doubt.
    pub in_doubt_block: Option<InDoubtBlock>,
}

/// The in-doubt block of a payment: its other captures wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubtBlock {
    /// The id of the capture that is in doubt.
    pub capture_request_id: String,
    /// How long the block still lasts, in milliseconds.
    pub left_ms: i64,
}

impl Leases {
    /// Reads the state of an id and its payment.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn inspect(&self, payment_id: &str, id: &str) -> Result<Inspection, Unavailable> {
        let PaymentKeys { lease, in_doubt_block, waiting_list, sent, recorded, replaced } =
            PaymentKeys::of(self.owner(), payment_id, id);
        let redis = self.redis();
        let mut record: Option<String> = redis.read("GET", &recorded).await?;
        if record.is_none() {
            record = redis.read("GET", &replaced).await?;
        }
        let recorded = record.as_deref().map(record::read).transpose()?.map(|(_, outcome)| outcome);
        let block: Option<String> = redis.read("GET", &in_doubt_block).await?;
        let block_left_ms: i64 = redis.read("PTTL", &in_doubt_block).await?;
        let lease_left_ms: i64 = redis.read("PTTL", &lease).await?;
        Ok(Inspection {
            recorded,
            sent: redis.read::<i64>("EXISTS", &sent).await? == 1,
            lease_left_ms: (lease_left_ms > 0).then_some(lease_left_ms),
            waiting: redis.read("LLEN", &waiting_list).await?,
            in_doubt_block: block.filter(|_| block_left_ms > 0).map(|block| InDoubtBlock {
                capture_request_id: block.get(TOKEN_CHARS..).unwrap_or_default().to_owned(),
                left_ms: block_left_ms,
            }),
        })
    }
}
