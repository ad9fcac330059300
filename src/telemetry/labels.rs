//! The labels of the metrics. Every set of label values is bounded.

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::domain::capture::outcome::{Deferral, Outcome};

/// The result of a job's wait for the lease of its payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseResult {
    /// The lease was acquired at Redis.
    Taken,
    /// The previous job of the payment in this worker handed the lease over.
    HandedOver,
    /// No lease was needed: the final outcome of this id is recorded.
    Recorded,
    /// Another worker has the lease.
    Held,
    /// Another capture of the payment is in doubt and blocks it.
    Blocked,
    /// The payment queue of this worker is full.
    QueueFull,
    /// The job gave up: Redis was unavailable, captures were paused, or the worker drains.
    Unavailable,
}

impl LeaseResult {
    /// The result for a job that asked Redis for the lease and gave up with this outcome.
    #[must_use]
    pub const fn of_given_up(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Deferred(Deferral::LeaseHeld) => Self::Held,
            _ => Self::Unavailable,
        }
    }

    /// The value of the label `result`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::HandedOver => "handed_over",
            Self::Recorded => "known",
            Self::Held => "held",
            Self::Blocked => "on_hold",
            Self::QueueFull => "line_full",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A label value that is fixed at compile time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Text(pub(super) &'static str);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SettlementLabels {
    pub(super) settlement: Text,
    pub(super) class: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndLabel {
    pub(super) settlement: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MoneyLabels {
    pub(super) settlement: Text,
    pub(super) class: Text,
    pub(super) currency: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WithinLabel {
    pub(super) within: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabel {
    pub(super) call: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PublishLabels {
    pub(super) to: Text,
    pub(super) result: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct QueueLabels {
    pub(super) kind: Text,
    pub(super) name: String,
}
