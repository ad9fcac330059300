//! Records calls, and counts capture calls of one payment that overlap. A correct worker causes no
//! overlap.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

/// The number of calls that are kept; older ones are dropped.
const CALLS_MAX: usize = 10_000;

/// One call that has ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CallRecord {
    pub(super) at: String,
    /// The time `at`, in epoch milliseconds.
    pub(super) at_ms: i64,
    pub(super) call: &'static str,
    pub(super) payment_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capture_request_id: Option<String>,
    /// The result code, or the name of the fault that the sandbox produced instead.
    pub(super) answer: String,
}

/// The recorded calls and the counts of overlaps.
#[derive(Debug, Default)]
pub(super) struct RecordedCalls {
    /// The ids of the capture calls in progress, by payment. An id occurs once for each of its
    /// calls.
    pub(super) in_flight: HashMap<String, Vec<String>>,
    /// How often a capture call began while a call for another id of its payment was in progress.
    pub(super) overlaps: u64,
    /// How often a capture call began while calls only for the same id were in progress.
    pub(super) same_id_overlaps: u64,
    /// The greatest number of capture calls in progress at once, of all payments.
    pub(super) at_once_max: usize,
    pub(super) calls: VecDeque<CallRecord>,
}

/// The record of all calls. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct CallRecorder(Arc<Mutex<RecordedCalls>>);

/// A capture call in progress. It is dropped when the call ends or when its caller disconnects.
#[derive(Debug)]
pub(super) struct CallInProgress {
    recorder: CallRecorder,
    payment_id: String,
    capture_request_id: String,
}

impl CallRecorder {
    pub(super) fn read<T>(&self, act: impl FnOnce(&mut RecordedCalls) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records the beginning of a capture call. It lasts until the result is dropped.
    pub(super) fn begin(&self, payment_id: &str, capture_request_id: &str) -> CallInProgress {
        self.read(|recorded| {
            let others = recorded.in_flight.entry(payment_id.to_owned()).or_default();
            if others.iter().any(|other| other != capture_request_id) {
                recorded.overlaps += 1;
            } else if !others.is_empty() {
                recorded.same_id_overlaps += 1;
            }
            others.push(capture_request_id.to_owned());
            let at_once = recorded.in_flight.values().map(Vec::len).sum();
            recorded.at_once_max = recorded.at_once_max.max(at_once);
        });
        CallInProgress {
            recorder: self.clone(),
            payment_id: payment_id.to_owned(),
            capture_request_id: capture_request_id.to_owned(),
        }
    }

    pub(super) fn record(&self, call: CallRecord) {
        self.read(|recorded| {
            if recorded.calls.len() == CALLS_MAX {
                recorded.calls.pop_front();
            }
            recorded.calls.push_back(call);
        });
    }

    /// Clears the record, except for the calls in progress.
    pub(super) fn clear(&self) {
        self.read(|recorded| {
            *recorded = RecordedCalls {
                in_flight: std::mem::take(&mut recorded.in_flight),
                ..RecordedCalls::default()
            };
        });
    }
}

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.recorder.read(|recorded| {
            let Some(ids) = recorded.in_flight.get_mut(&self.payment_id) else { return };
            if let Some(at) = ids.iter().position(|id| *id == self.capture_request_id) {
                ids.swap_remove(at);
            }
            if ids.is_empty() {
                recorded.in_flight.remove(&self.payment_id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_counted_apart_for_the_same_id_and_for_others() {
        let recorder = CallRecorder::default();
        let first = recorder.begin("p", "a");
        drop(recorder.begin("other", "z"));
        let again = recorder.begin("p", "a");
        drop(first);
        drop(recorder.begin("p", "b"));
        drop(again);
        drop(recorder.begin("p", "c"));
        recorder.read(|recorded| {
            assert_eq!(
                (recorded.overlaps, recorded.same_id_overlaps, recorded.at_once_max),
                (1, 1, 2)
            );
            assert!(recorded.in_flight.is_empty());
        });
    }
}
