//! Signs on separate threads. A signature takes twice as long as all other work of a job, so it
//! must neither delay the thread that does everything else nor be limited to one core.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::signing::SigningKey;

/// With more threads, signing would be faster than the one thread that does everything else.
const THREADS_MAX: usize = 3;

/// The signing threads, which run until this is dropped.
pub(super) struct SigningPool(Arc<SigningQueue>);

/// The queue of texts that wait for a signature.
#[derive(Default)]
struct SigningQueue {
    tasks: Mutex<SigningTasks>,
    added: Condvar,
}

#[derive(Default)]
struct SigningTasks {
    urgent: VecDeque<SigningTask>,
    others: VecDeque<SigningTask>,
    is_over: bool,
}

struct SigningTask {
    text: Vec<u8>,
    signed: oneshot::Sender<String>,
}

impl SigningPool {
    /// Starts a thread for each core, but not more than `THREADS_MAX`.
    ///
    /// # Errors
    /// The system can't start a thread.
    pub(super) fn start(key: SigningKey) -> std::io::Result<Self> {
        let (key, pool) = (Arc::new(key), Self(Arc::default()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores.min(THREADS_MAX) {
            let (key, queue) = (Arc::clone(&key), Arc::clone(&pool.0));
            std::thread::Builder::new().name("signer".into()).spawn(move || {
                while let Some(SigningTask { text, signed }) = queue.next() {
                    // A caller that stopped waiting needs no signature.
                    if !signed.is_closed() {
                        signed.send(key.sign_text(&text)).unwrap_or_default();
                    }
                }
            })?;
        }
        Ok(pool)
    }

    /// Signs a text. Urgent texts come first. `None`: a thread has ended, which is a bug.
    pub(super) async fn sign(&self, text: Vec<u8>, is_urgent: bool) -> Option<String> {
        let (signed, signature) = oneshot::channel();
        self.0.add(SigningTask { text, signed }, is_urgent);
        signature.await.ok()
    }
}

impl Drop for SigningPool {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.added.notify_all();
    }
}

impl SigningQueue {
    fn lock(&self) -> MutexGuard<'_, SigningTasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, task: SigningTask, is_urgent: bool) {
        let mut tasks = self.lock();
        let queue = if is_urgent { &mut tasks.urgent } else { &mut tasks.others };
        queue.push_back(task);
        self.added.notify_one();
    }

    /// Waits for the next task. `None`: there will be no more, because the pool was dropped.
    fn next(&self) -> Option<SigningTask> {
        let tasks = self.added.wait_while(self.lock(), |tasks| {
            tasks.urgent.is_empty() && tasks.others.is_empty() && !tasks.is_over
        });
        let mut tasks = tasks.unwrap_or_else(PoisonError::into_inner);
        tasks.urgent.pop_front().or_else(|| tasks.others.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::gateway::signing::{VerifyingKeys, signature_header, signing_text};

    #[tokio::test]
    async fn each_task_gets_the_signature_of_its_own_text() {
        let key = SigningKey::generate().unwrap();
        let verifying = VerifyingKeys::parse(&key.public_key().unwrap()).unwrap();
        let pool = SigningPool::start(key).unwrap();
        let bodies: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let sign = |body: &String| {
            let is_urgent = body.len() == 1;
            pool.sign(signing_text("/p", "c", "1", body.as_bytes()), is_urgent)
        };
        let signatures = join_all(bodies.iter().map(sign)).await;
        for (body, signature) in bodies.iter().zip(signatures) {
            let header = signature_header(1, &signature.unwrap());
            assert!(verifying.verify("/p", "c", "1", body.as_bytes(), &header));
        }
    }

    #[test]
    fn urgent_texts_are_signed_first() {
        let queue = SigningQueue::default();
        let task = |text: &[u8]| SigningTask { text: text.to_vec(), signed: oneshot::channel().0 };
        for (text, is_urgent) in [(b"1", false), (b"2", false), (b"3", true)] {
            queue.add(task(text), is_urgent);
        }
        queue.lock().is_over = true;
        let texts: Vec<_> = std::iter::from_fn(|| queue.next().map(|task| task.text)).collect();
        assert_eq!(texts, [b"3", b"1", b"2"]);
    }
}
