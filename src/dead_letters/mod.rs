//! Dead letters for operators: browse them, replay them by the policy of their class, and discard
//! them with a reason.
//!
//! Browsing loses, reorders and changes nothing. An act is recorded in the audit before it is done.
//! A dead letter leaves its queue only after the broker confirmed what replaces it. What the policy
//! refuses stays, and the operator gets the reason and a safe alternative. Every act is safe to
//! repeat, also by two operators at once: the same id captures once, and one parent has one child.

mod act;
mod captures;
mod decide;
mod desk;
mod discard;
mod filter;
mod record;
mod replay;
mod summary;
mod wording;

pub use self::{
    captures::Captures,
    decide::ReplayReport,
    desk::{Desk, DeskError, Flow, Progress},
    discard::Discard,
    filter::Filter,
    record::{Action, Audited, Record, Who},
    replay::Replays,
    summary::{Summaries, Summary},
    wording::RefusalText,
};
