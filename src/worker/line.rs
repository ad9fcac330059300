//! The local line: jobs of one payment in one worker stand behind each other instead of asking Redis all at once.
//! Bounded in length, share of the prefetch, and time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

/// The most jobs of one payment that stand in line.
const PAYMENT_MAX: usize = 16;
/// The longest that a job stands in line.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The lines of all payments.
#[derive(Clone)]
pub(super) struct Line {
    places: Arc<Mutex<Places>>,
    waiting_max: usize,
}

#[derive(Default)]
struct Places {
    waiting: usize,
    payments: HashMap<String, VecDeque<oneshot::Sender<Turn>>>,
}

/// A payment's turn, passed on to the next in line when it is dropped.
pub(super) struct Turn {
    places: Arc<Mutex<Places>>,
    payment_id: String,
}

impl Line {
    /// Lines in which at most half of the prefetch waits, so that one payment does not keep the others out.
    pub(super) fn new(prefetch: u16) -> Self {
        Self { places: Arc::default(), waiting_max: usize::from(prefetch) / 2 }
    }

    /// Waits for the payment's turn; `None` if the line is full or does not move.
    pub(super) async fn enter(&self, payment_id: &str) -> Option<Turn> {
        let turn = {
            let mut places = lock(&self.places);
            let Places { waiting, payments } = &mut *places;
            let Some(line) = payments.get_mut(payment_id) else {
                payments.insert(payment_id.to_owned(), VecDeque::new());
                return Some(self.turn(payment_id));
            };
            line.retain(|waiter| !waiter.is_closed());
            if line.len() >= PAYMENT_MAX || *waiting >= self.waiting_max {
                return None;
            }
            *waiting += 1;
            let (waiter, turn) = oneshot::channel();
            line.push_back(waiter);
            turn
        };
        let _waiting = Waiting(&self.places);
        tokio::time::timeout(WAIT_MAX, turn).await.ok()?.ok()
    }

    fn turn(&self, payment_id: &str) -> Turn {
        Turn { places: Arc::clone(&self.places), payment_id: payment_id.to_owned() }
    }
}

/// Counts a waiter until it waits no more.
struct Waiting<'a>(&'a Mutex<Places>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(self.0).waiting -= 1;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut places = lock(&self.places);
            let line = places.payments.get_mut(&self.payment_id);
            let next = line.and_then(VecDeque::pop_front);
            if next.is_none() {
                places.payments.remove(&self.payment_id);
            }
            next
        };
        if let Some(waiter) = next {
            let payment_id = std::mem::take(&mut self.payment_id);
            // A waiter that gave up meanwhile drops the turn, which passes it on once more.
            drop(waiter.send(Self { places: Arc::clone(&self.places), payment_id }));
        }
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_of_one_payment_take_turns_in_order() {
        let line = Line::new(64);
        let first = line.enter("p").await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for n in 0..5 {
            let (line, order) = (line.clone(), Arc::clone(&order));
            let waiter = async move {
                let _turn = line.enter("p").await.unwrap();
                order.lock().unwrap().push(n);
            };
            waiters.push(tokio::spawn(waiter));
            tokio::task::yield_now().await;
        }
        assert!(line.enter("other").await.is_some());
        drop(first);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert!(lock(&line.places).payments.is_empty());
        assert_eq!(lock(&line.places).waiting, 0);
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_keeps_nobody_from_the_turn() {
        let line = Line::new(64);
        let first = line.enter("p").await.unwrap();
        let gives_up = tokio::spawn({
            let line = line.clone();
            async move { line.enter("p").await.is_some() }
        });
        let waits = tokio::spawn({
            let line = line.clone();
            async move { line.enter("p").await.is_some() }
        });
        tokio::task::yield_now().await;
        gives_up.abort();
        drop(first);
        assert!(waits.await.unwrap());
        assert!(lock(&line.places).payments.is_empty());
    }

    #[tokio::test]
    async fn a_full_line_turns_jobs_away() {
        let line = Line::new(2);
        let _first = line.enter("p").await.unwrap();
        let waiter = tokio::spawn({
            let line = line.clone();
            async move { line.enter("p").await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(line.enter("p").await.is_none());
        waiter.abort();
    }
}
