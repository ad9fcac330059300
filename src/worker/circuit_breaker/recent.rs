//! A short memory of payments.

use std::collections::VecDeque;

/// The most recent payments, each once, up to a maximum.
pub(super) struct RecentPayments {
    payment_ids: VecDeque<String>,
    max: usize,
}

impl RecentPayments {
    pub(super) const fn new(max: usize) -> Self {
        Self { payment_ids: VecDeque::new(), max }
    }

    pub(super) fn put(&mut self, payment_id: &str) {
        if self.payment_ids.back().is_some_and(|last| last == payment_id) {
            return;
        }
        self.remove(payment_id);
        if self.payment_ids.len() >= self.max {
            self.payment_ids.pop_front();
        }
        self.payment_ids.push_back(payment_id.to_owned());
    }

    /// Takes the payment at the front and moves it to the back, so that calls rotate through all.
    pub(super) fn rotate(&mut self) -> Option<String> {
        let payment_id = self.payment_ids.pop_front()?;
        self.payment_ids.push_back(payment_id.clone());
        Some(payment_id)
    }

    pub(super) fn contains(&self, payment_id: &str) -> bool {
        self.payment_ids.iter().any(|recent| recent == payment_id)
    }

    pub(super) fn remove(&mut self, payment_id: &str) {
        self.payment_ids.retain(|recent| recent != payment_id);
    }

    pub(super) fn clear(&mut self) {
        self.payment_ids.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.payment_ids.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &String> {
        self.payment_ids.iter()
    }
}
