//! Acks deliveries in groups: one task acks everything that was settled meanwhile, and consecutive
//! delivery tags with one frame. Each frame wakes the client's I/O loop and the broker, which is a
//! large part of the cost of a job.

use std::collections::BTreeSet;

use lapin::{Channel, options::BasicAckOptions};
use tokio::sync::{mpsc, oneshot};

use super::session_state::SessionState;

/// The maximum number of requests that are handled together.
const BATCH_MAX: usize = 256;

enum AckRequest {
    Ack(u64),
    Flush(oneshot::Sender<()>),
}

/// A handle with which jobs are acked in one session.
#[derive(Clone)]
pub(super) struct Acks(mpsc::UnboundedSender<AckRequest>);

impl Acks {
    /// Starts the task that acks on this channel. It ends with the session.
    pub(super) fn start(channel: Channel, state: SessionState) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(channel, queue, state));
        Self(requests)
    }

    /// Queues the ack of a settled delivery. If the session is lost before the ack is sent, the
    /// broker redelivers the job.
    pub(super) fn ack(&self, tag: u64) {
        // An error means that the task ended, because the session is lost.
        self.0.send(AckRequest::Ack(tag)).unwrap_or_default();
    }

    /// Returns when all acks that were queued before are sent, or the session is lost.
    pub(super) async fn flush(&self) {
        let (flushed, done) = oneshot::channel();
        if self.0.send(AckRequest::Flush(flushed)).is_ok() {
            // An error means that the session is lost.
            drop(done.await);
        }
    }
}

async fn run(
    channel: Channel,
    mut queue: mpsc::UnboundedReceiver<AckRequest>,
    state: SessionState,
) {
    let mut settled = SettledTags::default();
    let mut requests = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            () = state.lost() => return,
            taken = queue.recv_many(&mut requests, BATCH_MAX) => if taken == 0 { return },
        }
        let (mut tags, mut waiting) = (Vec::new(), Vec::new());
        for request in requests.drain(..) {
            match request {
                AckRequest::Ack(tag) => tags.push(tag),
                AckRequest::Flush(flushed) => waiting.push(flushed),
            }
        }
        for (tag, multiple) in settled.frames(tags) {
            if let Err(error) = channel.basic_ack(tag, BasicAckOptions { multiple }).await {
                return state.end(&format!("sending an ack failed: {error}"));
            }
        }
        for flushed in waiting {
            flushed.send(()).unwrap_or_default();
        }
    }
}

/// Which deliveries of a channel are settled. Delivery tags count from 1.
#[derive(Debug, Default)]
struct SettledTags {
    /// Every delivery up to this tag is settled.
    up_to: u64,
    /// Tags above `up_to` that were settled, and acked, out of order.
    beyond: BTreeSet<u64>,
}

impl SettledTags {
    /// The frames that ack exactly these deliveries, as (tag, the `multiple` flag).
    fn frames(&mut self, mut tags: Vec<u64>) -> Vec<(u64, bool)> {
        tags.sort_unstable();
        let mut last = None;
        let mut singles = Vec::new();
        for tag in tags {
            while self.beyond.remove(&(self.up_to + 1)) {
                self.up_to += 1;
            }
            if tag == self.up_to + 1 {
                self.up_to = tag;
                last = Some(tag);
            } else {
                self.beyond.insert(tag);
                singles.push((tag, false));
            }
        }
        last.map(|tag| (tag, true)).into_iter().chain(singles).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn consecutive_deliveries_are_acked_with_one_frame() {
        let mut settled = SettledTags::default();
        assert_eq!(settled.frames(vec![3, 1, 2]), [(3, true)]);
        assert_eq!(settled.frames(vec![5, 6]), [(5, false), (6, false)]);
        assert_eq!(settled.frames(vec![8, 4]), [(4, true), (8, false)]);
        assert_eq!(settled.frames(vec![7]), [(7, true)]);
        assert_eq!(settled.frames(vec![9, 10]), [(10, true)]);
        assert_eq!((settled.up_to, settled.beyond.len()), (10, 0));
    }

    proptest! {
        /// As at the broker, a `multiple` frame acks every unacked delivery up to its tag.
        #[test]
        fn exactly_the_settled_deliveries_are_acked(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in prop::collection::vec(1..9_usize, 60),
        ) {
            let mut order = order.into_iter();
            let (mut settled, mut asked, mut acked) =
                (SettledTags::default(), BTreeSet::new(), BTreeSet::new());
            for size in sizes {
                let tags: Vec<u64> = order.by_ref().take(size).collect();
                asked.extend(&tags);
                for (tag, multiple) in settled.frames(tags) {
                    prop_assert!(acked.insert(tag), "{tag} is acked twice");
                    if multiple {
                        acked.extend(1..tag);
                    }
                }
                prop_assert_eq!(&acked, &asked);
            }
        }
    }
}
