//! The text format of recorded outcomes and sent markers, which the Lua scripts read as well.

use super::{Claim, Unavailable};
use crate::domain::capture::{
    judge::SentMarker,
    outcome::{FinalOutcome, Recorded, Release},
};

/// What a release writes: the arguments of the function `record` in `payment.lua`.
pub(super) struct Recording {
    pub(super) mode: &'static str,
    /// The outcome to record, or empty.
    pub(super) outcome: String,
    /// Amount and code of a signed `F` to keep with the sent marker, or empty.
    pub(super) refused: String,
}

impl Recording {
    pub(super) fn of(claim: &Claim, release: &Release) -> Result<Self, Unavailable> {
        let nothing = |mode| Self { mode, outcome: String::new(), refused: String::new() };
        Ok(match release {
            Release::Final(outcome) => Self::outcome("final", claim, outcome)?,
            Release::FailedWhileLeased(outcome) => Self::outcome("close", claim, outcome)?,
            Release::Replace(outcome) => Self::outcome("replace", claim, outcome)?,
            Release::EndBlock => nothing("end"),
            Release::KeepBlock { refused: None } => nothing("keep"),
            Release::KeepBlock { refused: Some(code) } => {
                Self { refused: format!("{}\n{code}", claim.amount()), ..nothing("keep") }
            }
            Release::RollBack => nothing("roll_back"),
            Release::RollBackAlways => nothing("roll_back_lost"),
        })
    }

    /// Records that a fresh id replaces an id with a recorded failure.
    pub(super) fn replaced(claim: &Claim, outcome: &FinalOutcome) -> Result<Self, Unavailable> {
        Self::outcome("replaced", claim, outcome)
    }

    fn outcome(
        mode: &'static str,
        claim: &Claim,
        outcome: &FinalOutcome,
    ) -> Result<Self, Unavailable> {
        let json =
            serde_json::to_string(outcome).map_err(|error| Unavailable::new(error.to_string()))?;
        let outcome = format!("{}\n{}\n{json}", claim.amount(), outcome.kind());
        Ok(Self { mode, outcome, refused: String::new() })
    }
}

/// Parses a recorded outcome, which has amount, kind and JSON on one line each, into its amount and
/// the outcome.
pub(super) fn read(record: &str) -> Result<(&str, FinalOutcome), Unavailable> {
    let malformed =
        || Unavailable::new("the recorded outcome is malformed: expected amount, kind and JSON");
    let mut lines = record.splitn(3, '\n');
    let (Some(amount), Some(_), Some(json)) = (lines.next(), lines.next(), lines.next()) else {
        return Err(malformed());
    };
    Ok((amount, serde_json::from_str(json).map_err(|_| malformed())?))
}

/// What an outcome that was recorded earlier means for a claim.
pub(super) fn for_claim(claim: &Claim, record: &str) -> Result<Recorded, Unavailable> {
    Ok(match read(record)? {
        (amount, outcome) if amount == claim.amount() => Recorded::Same(outcome),
        (_, FinalOutcome::Captured(_)) => Recorded::CapturedOther,
        _ => Recorded::ReplacedOther,
    })
}

/// Parses the part of a sent marker after its token: see `marker_text` in `payment.lua`.
pub(super) fn read_marker(text: &str, our_amount: &str) -> SentMarker {
    let mut lines = text.splitn(3, '\n');
    let denied_at_replay = lines.next().and_then(|number| number.parse().ok());
    let refused = match (lines.next(), lines.next()) {
        (Some(amount), Some(code)) if amount == our_amount => Some(code.to_owned()),
        _ => None,
    };
    SentMarker { denied_at_replay, refused }
}
