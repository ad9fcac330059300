//! Reads what Redis holds about one capture and its payment, for operators. Nothing is changed.

use redis::FromRedisValue;

use super::{
    Away, Leases,
    claim::{Keys, TOKEN_CHARS},
    outage, record,
};
use crate::domain::capture::outcome::Fate;

/// The state of one capture and its payment in Redis. The keys are read one after the other, so
/// they may be from slightly different moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The recorded outcome of the id, if there is one.
    pub known: Option<Fate>,
    /// Whether the id has a sent marker: its capture may have been sent.
    pub sent: bool,
    /// The remaining time of the payment's lease, in milliseconds, if a worker has it.
    pub lease_left_ms: Option<i64>,
    /// How many workers are in the waiting list for the lease.
    pub waiting: u64,
    /// The in-doubt block of the payment, if one of its captures is in doubt.
    pub hold: Option<Hold>,
}

/// The in-doubt block of a payment: its other captures wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
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
