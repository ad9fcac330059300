//! A constant load: publishers keep the number of unfinished jobs constant at any machine speed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use testkit::clients::{Publisher, Seen};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The number of jobs without a result while the load runs.
pub(crate) const BACKLOG: usize = 80;
const PUBLISHERS: usize = 8;
/// The pause of a publisher after each job. It gives more jobs than the hot payments can process,
/// but not more than a small machine can.
const PAUSE: Duration = Duration::from_millis(100);

/// One job of the load.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) payment_id: String,
    pub(crate) value: String,
}

impl Job {
    /// Every third job has its own payment. The others are partial captures of the hot payments in
    /// turn.
    fn nth(n: usize, hot: &[String]) -> Self {
        let payment_id = match n % 3 {
            0 => format!("cold-{n}"),
            _ => hot[(n - n / 3) % hot.len()].clone(),
        };
        Self { id: format!("j-{n}"), payment_id, value: (n % 97 + 1).to_string() }
    }

    fn body(&self) -> Vec<u8> {
        let amount = json!({"currency": "HKD", "value": self.value});
        json!({
            "captureRequestId": self.id,
            "paymentId": self.payment_id,
            "captureAmount": amount,
            "captureType": "NON_FINAL",
        })
        .to_string()
        .into_bytes()
    }
}

/// Publishers that run until [`Self::stop`].
pub(crate) struct Load {
    hot: Vec<String>,
    /// The number of jobs whose publish has begun.
    published: Arc<Mutex<usize>>,
    stop: CancellationToken,
    publishers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(broker_url: &str, prefix: &str, results: &Seen, hot: &[String]) -> Self {
        let mut load = Self {
            hot: hot.to_vec(),
            published: Arc::default(),
            stop: CancellationToken::new(),
            publishers: JoinSet::new(),
        };
        for _ in 0..PUBLISHERS {
            let mut publisher = Publisher::to(broker_url.to_owned(), prefix);
            let (published, results) = (Arc::clone(&load.published), Arc::clone(results));
            let (stop, hot) = (load.stop.clone(), load.hot.clone());
            load.publishers.spawn(async move {
                while !stop.is_cancelled() {
                    if let Some(n) = next(&published, &results) {
                        publisher.publish(&Job::nth(n, &hot).body()).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        load
    }

    /// All jobs so far. The broker may not have received the last ones yet.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let published = *self.published.lock().unwrap_or_else(PoisonError::into_inner);
        (0..published).map(|n| Job::nth(n, &self.hot)).collect()
    }

    /// Stops the publishers and waits until the broker has every job.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(stopped) = self.publishers.join_next().await {
            stopped.unwrap();
        }
    }
}

/// The number of the next job, or `None` if enough jobs are unfinished.
fn next(published: &Mutex<usize>, results: &Seen) -> Option<usize> {
    let mut published = published.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = results.lock().unwrap_or_else(PoisonError::into_inner).len();
    let n = *published;
    let wanted = n < ended + BACKLOG;
    *published += usize::from(wanted);
    wanted.then_some(n)
}
