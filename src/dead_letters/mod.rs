//! Dead letters, for those who answer for them: looked at, replayed by the policy of their class, discarded with a reason.
//!
//! A look loses, reorders and changes nothing. An act is written down in the audit first; a letter leaves its queue only after
//! what replaces it is confirmed. What the policy refuses stays, with the reason and the safe alternative. All of it is safe to
//! do twice, and by two at once: the same id captures once, and one parent has one child.

mod act;
mod desk;
mod discard;
mod filter;
mod record;
mod replay;
mod status;
mod summary;

pub(crate) use self::record::rfc3339;

pub use self::{
    desk::{Desk, DeskError, Flow, Progress},
    discard::Discard,
    filter::Filter,
    record::{Action, Audited, Record, Who},
    replay::{Replays, Told},
    status::{Relative, Shown, StatusOf},
    summary::Summary,
};
