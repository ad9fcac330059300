//! Polls until a condition holds or a deadline passes, instead of a fixed sleep.

use std::{
    panic::Location,
    time::{Duration, Instant},
};

/// The result of a probe: `true` or `Some(value)` ends the wait.
pub trait Outcome {
    type Value;
    fn value(self) -> Option<Self::Value>;
}

impl Outcome for bool {
    type Value = ();
    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn value(self) -> Self {
        self
    }
}

/// Probes until the probe succeeds, or returns `None` after `limit`. The probe runs at least once.
pub async fn within<A: Outcome>(
    limit: Duration,
    mut probe: impl AsyncFnMut() -> A,
) -> Option<A::Value> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = probe().await.value() {
            return Some(value);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// [`within`] that panics after `limit`, with what it waited for and where.
#[track_caller]
pub fn eventually<A: Outcome>(
    what: &str,
    limit: Duration,
    probe: impl AsyncFnMut() -> A,
) -> impl Future<Output = A::Value> {
    let caller = Location::caller();
    async move {
        match within(limit, probe).await {
            Some(value) => value,
            None => panic!("{caller}: not reached within {limit:?}: {what}"),
        }
    }
}
