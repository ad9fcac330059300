//! The jobs that a run publishes.

/// The payment id of all hot jobs.
const HOT: &str = "hot";
const AMOUNT: &str = r#"{"currency":"HKD","value":"100"}"#;

/// A job that a run publishes.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) payment_id: String,
}

impl Job {
    pub(crate) fn body(&self) -> String {
        format!(
            r#"{{"captureRequestId":"{}","paymentId":"{}","captureAmount":{AMOUNT}}}"#,
            self.id, self.payment_id
        )
    }

    pub(crate) fn is_hot(&self) -> bool {
        self.payment_id == HOT
    }
}

/// `count` jobs, each of a payment of its own.
pub(crate) fn cold(count: usize) -> Vec<Job> {
    let job = |n| Job {
        id: format!("c-{n:05}"),
        payment_id: format!("2026010119401089010011174027582{n:05}"),
    };
    (0..count).map(job).collect()
}

/// `count` jobs of one payment.
pub(crate) fn hot(count: usize) -> Vec<Job> {
    (0..count).map(|n| Job { id: format!("h-{n:05}"), payment_id: HOT.to_owned() }).collect()
}

/// All jobs of both kinds, with the hot ones spread evenly among the cold ones.
pub(crate) fn mix(cold: Vec<Job>, hot: Vec<Job>) -> Vec<Job> {
    let every = cold.len() / hot.len().max(1);
    let mut hot = hot.into_iter();
    let mut mixed = Vec::new();
    for (n, job) in cold.into_iter().enumerate() {
        mixed.push(job);
        if every == 0 || n % every == 0 {
            mixed.extend(hot.next());
        }
    }
    mixed.extend(hot);
    mixed
}
