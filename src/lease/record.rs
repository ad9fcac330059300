//! The text format of recorded outcomes and sent markers, which the Lua scripts read as well.

use super::{Away, Claim};
use crate::domain::capture::{
    judge::SentMarker,
    outcome::{Fate, Release},
};

/// The arguments of a release: its mode, the outcome to record, and the code of a signed `F` to
/// keep with the sent marker.
pub(super) fn parts<'r>(
    claim: &Claim,
    release: &'r Release,
) -> Result<(&'static str, String, &'r str), Away> {
    Ok(match release {
        Release::Final(fate) => ("final", write(claim, fate)?, ""),
        Release::Close(fate) => ("close", write(claim, fate)?, ""),
        Release::Replace(fate) => ("replace", write(claim, fate)?, ""),
        Release::EndHold => ("end", String::new(), ""),
        Release::KeepHold { refused } => {
            ("keep", String::new(), refused.as_deref().unwrap_or_default())
        }
        Release::TakeBack => ("back", String::new(), ""),
        Release::Forget => ("forget", String::new(), ""),
    })
}

/// The recorded form of an outcome: amount, kind and JSON, one line each.
pub(super) fn write(claim: &Claim, fate: &Fate) -> Result<String, Away> {
    let json = serde_json::to_string(fate).map_err(|error| Away(error.to_string()))?;
    Ok(format!("{}\n{}\n{json}", claim.amount(), fate.kind()))
}

/// Parses a recorded outcome into its amount and the outcome.
pub(super) fn read(record: &str) -> Result<(&str, Fate), Away> {
    let unreadable =
        || Away("the recorded outcome is malformed: expected amount, kind and JSON".to_owned());
    let mut lines = record.splitn(3, '\n');
    let (Some(amount), Some(_), Some(json)) = (lines.next(), lines.next(), lines.next()) else {
        return Err(unreadable());
    };
    Ok((amount, serde_json::from_str(json).map_err(|_| unreadable())?))
}

/// Parses the part of a sent marker after its token: see `marker_of` in `common.lua`.
pub(super) fn read_marker(told: &str, our_amount: &str) -> SentMarker {
    let mut lines = told.splitn(3, '\n');
    let denied_at_replay = lines.next().and_then(|number| number.parse().ok());
    let refused = match (lines.next(), lines.next()) {
        (Some(amount), Some(code)) if amount == our_amount => Some(code.to_owned()),
        _ => None,
    };
    SentMarker { denied_at_replay, refused }
}
