//! What Redis knows of one capture and its payment, for people. Nothing is taken and nothing is changed.

use redis::FromRedisValue;

use super::{
    Away, Leases,
    claim::{Keys, TOKEN_CHARS},
    outage, record,
};
use crate::domain::outcome::Fate;

/// What is written down at one moment, or nearly: the keys are read one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The id's final outcome, if it is remembered.
    pub known: Option<Fate>,
    /// Whether a capture request for the id may have left.
    pub sent: bool,
    /// How long the payment's lease still lasts, in milliseconds, if a worker has it.
    pub lease_left_ms: Option<i64>,
    /// How many workers wait for the lease.
    pub waiting: u64,
    /// The payment's hold, if one of its captures is in doubt.
    pub hold: Option<Hold>,
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The id in doubt.
    pub capture_request_id: String,
    /// How long it still keeps others out, in milliseconds.
    pub left_ms: i64,
}

impl Leases {
    /// Reads what is known of an id of a payment.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn inspect(&self, payment_id: &str, id: &str) -> Result<Inspection, Away> {
        let Keys { lease, hold, line, sent, known, replaced } =
            Keys::of(&self.owner, payment_id, id);
        let mut kept: Option<String> = self.read("GET", &known).await?;
        if kept.is_none() {
            kept = self.read("GET", &replaced).await?;
        }
        let known = kept.as_deref().map(record::read).transpose()?.map(|(_, fate)| fate);
        let holder: Option<String> = self.read("GET", &hold).await?;
        let hold_left_ms: i64 = self.read("PTTL", &hold).await?;
        let lease_left_ms: i64 = self.read("PTTL", &lease).await?;
        Ok(Inspection {
            known,
            sent: self.read::<i64>("EXISTS", &sent).await? == 1,
            lease_left_ms: (lease_left_ms > 0).then_some(lease_left_ms),
            waiting: self.read("LLEN", &line).await?,
            hold: holder.filter(|_| hold_left_ms > 0).map(|holder| Hold {
                capture_request_id: holder.get(TOKEN_CHARS..).unwrap_or_default().to_owned(),
                left_ms: hold_left_ms,
            }),
        })
    }

    async fn read<T: FromRedisValue>(&self, command: &str, key: &str) -> Result<T, Away> {
        let mut wire = self.wire()?;
        let read = redis::cmd(command).arg(key).query_async(&mut wire).await;
        read.map_err(|error| {
            self.link.suspect(&error);
            Away(outage::describe(&error))
        })
    }
}
