//! Whether a dead letter may be discarded. Where money may have moved, only with evidence from the
//! gateway.

use super::{
    ReplayPolicy, dead_letter::DeadLetter, evidence::CaptureSeen, refusal::DiscardRefusal,
};
use crate::domain::capture::class::{Class, Codes};

/// Whether the dead letter alone does not prove that its id captured nothing. Then the gateway must
/// be asked before it is discarded.
#[must_use]
pub fn may_have_captured(dead_letter: &DeadLetter) -> bool {
    matches!(dead_letter.class, Class::Conflict | Class::InDoubt | Class::Poison)
        || ReplayPolicy::of(dead_letter.class, dead_letter.signed) == ReplayPolicy::FreshId
            && !dead_letter.signed
}

/// Decides by the gateway's evidence whether a dead letter that may have captured may be discarded.
///
/// # Errors
/// Why it must stay.
pub fn may_discard(dead_letter: &DeadLetter, seen: &CaptureSeen) -> Result<(), DiscardRefusal> {
    let is_conflict = dead_letter.class == Class::Conflict;
    // The gateway has no such payment, or its authorization has ended: another inquiry will not
    // show more.
    let is_gone = |code: &Option<String>| {
        let class = code.as_deref().map(|code| Codes::default().class_of(code));
        matches!(class, Some(Class::Order | Class::Authorization))
    };
    match seen {
        CaptureSeen::Captured(_) if !is_conflict => Err(DiscardRefusal::CapturedUnpublished),
        CaptureSeen::InProcess => Err(DiscardRefusal::InProcess),
        CaptureSeen::Nothing { code, reason } if !is_gone(code) => {
            Err(DiscardRefusal::OutcomeUnknown(reason.clone()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{capture::outcome::Capture, tests::dead_letter};

    #[test]
    fn what_may_have_captured_is_discarded_only_with_evidence() {
        let nothing = |code: Option<&str>| CaptureSeen::Nothing {
            reason: "no reply".into(),
            code: code.map(str::to_owned),
        };
        let (silent, denied) = (nothing(None), nothing(Some("ACCESS_DENIED")));
        let refused = nothing(Some("ORDER_NOT_EXIST"));
        let captured = CaptureSeen::Captured(Capture::default());
        for (class, seen, stays) in [
            (Class::InDoubt, &captured, true),
            (Class::Conflict, &captured, false),
            (Class::InDoubt, &silent, true),
            (Class::Conflict, &silent, true),
            (Class::Conflict, &denied, true),
            (Class::Conflict, &refused, false),
            (Class::InDoubt, &CaptureSeen::InProcess, true),
            (Class::InDoubt, &CaptureSeen::NoSuchCapture, false),
        ] {
            let refused = may_discard(&dead_letter(class, "c"), seen).is_err();
            assert_eq!(refused, stays, "{class} {seen:?}");
        }
        assert!(!may_have_captured(&dead_letter(Class::Risk, "c")));
    }
}
