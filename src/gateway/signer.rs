//! Signing on threads of its own: a signature takes twice as long as all the rest of a job, so it neither holds up the
//! thread on which everything else runs nor is bound to one core.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::signing::SigningKey;

/// More threads than that sign faster than one thread does the rest.
const THREADS_MAX: usize = 3;

/// Threads that sign, until it is dropped.
pub(super) struct Signer {
    orders: mpsc::Sender<Order>,
}

struct Order {
    text: Vec<u8>,
    signed: oneshot::Sender<String>,
}

impl Signer {
    /// As many threads as there are cores, up to a few.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(key: SigningKey) -> std::io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let (key, received) = (Arc::new(key), Arc::new(Mutex::new(received)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores.min(THREADS_MAX) {
            let (key, received) = (Arc::clone(&key), Arc::clone(&received));
            std::thread::Builder::new()
                .name("signer".into())
                .spawn(move || serve(&key, &received))?;
        }
        Ok(Self { orders })
    }

    /// The signature of a text. `None`: the threads have ended, which is a bug of ours.
    pub(super) async fn sign(&self, text: Vec<u8>) -> Option<String> {
        let (signed, signature) = oneshot::channel();
        self.orders.send(Order { text, signed }).ok()?;
        signature.await.ok()
    }
}

fn serve(key: &SigningKey, orders: &Mutex<mpsc::Receiver<Order>>) {
    loop {
        // The lock is held while nothing is ordered: the others wait for it instead.
        let order = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Order { text, signed }) = order else { return };
        // Whoever gave up waiting needs no signature.
        if !signed.is_closed() {
            signed.send(key.sign_text(&text)).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::gateway::signing::{VerifyingKeys, signature_header, signing_text};

    #[tokio::test]
    async fn each_order_gets_the_signature_of_its_own_text() {
        let key = SigningKey::generate().unwrap();
        let verifying = VerifyingKeys::parse(&key.public_key().unwrap()).unwrap();
        let signer = Signer::start(key).unwrap();
        let bodies: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let sign = |body: &String| signer.sign(signing_text("/p", "c", "1", body.as_bytes()));
        let signatures = join_all(bodies.iter().map(sign)).await;
        for (body, signature) in bodies.iter().zip(signatures) {
            let header = signature_header(1, &signature.unwrap());
            assert!(verifying.verify("/p", "c", "1", body.as_bytes(), &header));
        }
    }
}
