//! Acks in groups: one task acks what was settled meanwhile, a run of neighbours with one frame. Each frame wakes the
//! client's io loop and the broker, so fewer of them are a good part of what a job costs.

use std::collections::BTreeSet;

use lapin::{Channel, options::BasicAckOptions};
use tokio::sync::{mpsc, oneshot};

use super::session::Life;

/// The most that is acked at once.
const BATCH_MAX: usize = 256;

enum Request {
    Ack(u64),
    Flush(oneshot::Sender<()>),
}

/// The way to ack in one session.
#[derive(Clone)]
pub(super) struct Acks(mpsc::UnboundedSender<Request>);

impl Acks {
    /// Starts the task that acks on this channel; it ends with the session.
    pub(super) fn start(channel: Channel, life: Life) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(channel, queue, life));
        Self(requests)
    }

    /// Acks a delivery that is settled, soon. If the session is lost before, the job comes again, as it would have then.
    pub(super) fn ack(&self, tag: u64) {
        // Nobody listens once the session is lost.
        self.0.send(Request::Ack(tag)).unwrap_or_default();
    }

    /// Returns when everything before is acked.
    pub(super) async fn flush(&self) {
        let (flushed, done) = oneshot::channel();
        if self.0.send(Request::Flush(flushed)).is_ok() {
            // An error says that the session is lost.
            drop(done.await);
        }
    }
}

async fn run(channel: Channel, mut queue: mpsc::UnboundedReceiver<Request>, life: Life) {
    let mut settled = Settled::default();
    let mut requests = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            () = life.lost() => return,
            taken = queue.recv_many(&mut requests, BATCH_MAX) => if taken == 0 { return },
        }
        let (mut tags, mut waiting) = (Vec::new(), Vec::new());
        for request in requests.drain(..) {
            match request {
                Request::Ack(tag) => tags.push(tag),
                Request::Flush(flushed) => waiting.push(flushed),
            }
        }
        for (tag, multiple) in settled.frames(tags) {
            if let Err(error) = channel.basic_ack(tag, BasicAckOptions { multiple }).await {
                return life.end(&format!("acking failed: {error}"));
            }
        }
        for flushed in waiting {
            flushed.send(()).unwrap_or_default();
        }
    }
}

/// Which deliveries of a channel are settled. Their tags count from 1.
#[derive(Debug, Default)]
struct Settled {
    /// All up to this one are.
    up_to: u64,
    /// And these, out of order; acked already.
    beyond: BTreeSet<u64>,
}

impl Settled {
    /// The frames that ack these deliveries and no others: (tag, whether all before it too).
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
    fn a_run_without_gaps_takes_one_frame() {
        let mut settled = Settled::default();
        assert_eq!(settled.frames(vec![3, 1, 2]), [(3, true)]);
        assert_eq!(settled.frames(vec![5, 6]), [(5, false), (6, false)]);
        assert_eq!(settled.frames(vec![8, 4]), [(4, true), (8, false)]);
        assert_eq!(settled.frames(vec![7]), [(7, true)]);
        assert_eq!(settled.frames(vec![9, 10]), [(10, true)]);
        assert_eq!((settled.up_to, settled.beyond.len()), (10, 0));
    }

    proptest! {
        /// As the broker does it: a frame for all before acks every delivery up to its tag that is not acked.
        #[test]
        fn exactly_what_is_settled_is_acked(
            order in Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in prop::collection::vec(1..9_usize, 60),
        ) {
            let mut order = order.into_iter();
            let (mut settled, mut asked, mut acked) =
                (Settled::default(), BTreeSet::new(), BTreeSet::new());
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
