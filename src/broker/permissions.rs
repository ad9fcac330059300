//! The check of all broker permissions that a worker needs.

use super::{
    names::Exchange,
    probe::{PermissionsError, may_read, may_write},
    session::Session,
};

/// The exchanges that a worker publishes to.
const WRITES: [Exchange; 3] = [Exchange::Wait, Exchange::Dead, Exchange::Results];

impl Session {
    /// The permissions that a worker needs and our user lacks, each with the broker's reason. No
    /// message is left and none is consumed.
    ///
    /// # Errors
    /// The connection fails, or the broker does not respond in time.
    pub async fn missing_permissions(&self) -> Result<Vec<String>, PermissionsError> {
        let mut missing = Vec::new();
        for exchange in WRITES {
            if let Some(refusal) = may_write(self.options(), exchange).await? {
                let name = self.names.exchange(exchange);
                missing.push(format!("write to exchange {name}: {}", refusal.text));
            }
        }
        let (connection, queue) = (&self.publishing().connection, self.names.jobs());
        if let Some(refusal) = may_read(connection, &queue).await? {
            missing.push(format!("read from queue {queue}: {}", refusal.text));
        }
        Ok(missing)
    }
}
