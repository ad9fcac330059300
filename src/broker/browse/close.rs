//! The end of a browse: all messages that were not removed return to their queue.

use super::{
    browser::Browser,
    error::{BrowseError, step},
};

impl Browser {
    /// Returns all messages that were not removed, in their order.
    ///
    /// # Errors
    /// The connection to the broker is lost. Then the broker returns them.
    pub async fn close(mut self) -> Result<(), BrowseError> {
        // Finish the window: messages on their way to a cancelled consumer would return out of
        // order. Also take all messages that were returned before: they stand in front of the
        // others, in the order of their return.
        while self.consumer.is_some() || self.is_returned {
            if self.take().await?.is_none() {
                break;
            }
        }
        if self.consumer.is_some() {
            self.end_window().await?;
        }
        self.return_held().await?;
        if self.is_worn() {
            self.start_over().await?;
            self.republish_all().await?;
            self.return_held().await?;
        }
        step(self.channel.close(200, "done".into())).await?;
        if let Some(republisher) = self.republisher {
            republisher.close().await;
        }
        match self.lock {
            Some(lock) => lock.release().await,
            None => Ok(()),
        }
    }
}
