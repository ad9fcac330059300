//! Runs each script once at a payment that does not exist, for `check`. Nothing is left behind.

use super::{Acquired, Claim, Leases, Released, Renewed, Unavailable};
use crate::domain::{capture::outcome::Release, job::Job};

impl Leases {
    /// Connects, and runs each script once at a payment that does not exist. Nothing is left
    /// behind.
    ///
    /// # Errors
    /// The command that Redis refused, with its own error text.
    pub async fn try_out(&self) -> Result<(), Unavailable> {
        self.redis().connect_once().await?;
        let tried = self.take_and_roll_back().await;
        self.redis().drop_connection();
        tried
    }

    async fn take_and_roll_back(&self) -> Result<(), Unavailable> {
        let [first, second] = self.scratch().map_err(Unavailable::new)?;
        let tried = self.take_and_hand_over(&first, &second).await;
        if tried.is_err() {
            // If the connection is lost, the lease expires after its time to live.
            for claim in [first, second] {
                drop(self.roll_back(&claim).await);
            }
        }
        tried
    }

    async fn take_and_hand_over(&self, first: &Claim, second: &Claim) -> Result<(), Unavailable> {
        let Acquired::Taken(mut lease) = self.acquire(first, true).await? else {
            return Err(Unavailable::new("acquire.lua returned no lease of an unused payment"));
        };
        if self.renew(&mut lease, true, None).await? != Renewed::Kept {
            return Err(Unavailable::new("renew.lua returned that a new lease is lost"));
        }
        let handed = self.hand_over(&lease, &Release::RollBack, second, true).await?;
        let (Released { kept: true, .. }, Acquired::Taken(lease)) = handed else {
            return Err(Unavailable::new("hand_over.lua returned that a new lease is lost"));
        };
        if !self.release(&lease, &Release::RollBack).await?.kept {
            return Err(Unavailable::new("release.lua returned that a new lease is lost"));
        }
        Ok(())
    }

    /// The claims of two captures of one payment that does not exist.
    fn scratch(&self) -> Result<[Claim; 2], String> {
        let payment = format!("capture-worker-check-{:016x}", rand::random::<u64>());
        let claim = |id: &str| {
            let amount = r#"{"currency":"HKD","value":"1"}"#;
            let job = format!(
                r#"{{"captureRequestId":"{id}","paymentId":"{payment}","captureAmount":{amount}}}"#
            );
            let job =
                Job::parse(job.as_bytes()).map_err(|malformed| malformed.reason.to_string())?;
            Ok::<_, String>(self.claim(&job, true))
        };
        Ok([claim("first")?, claim("second")?])
    }
}
