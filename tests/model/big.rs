//! The configurations whose search takes minutes and gigabytes.

use crate::{
    domain::{DENIED, ILLEGAL, RISK, Said},
    setups::{BASE, CALM, COPIES, CRASH, REFUSED, SMALL, TWO_IDS},
    state::{Budget, Setup},
};

/// A configuration is searched if its name contains the value of `CAPTURE_MODEL`. Each search takes
/// minutes and gigabytes of memory.
pub(crate) const BIG: &[Setup] = &[
    Setup {
        name: "big: one job, all replies, two crashes",
        delays: 2,
        budget: Budget { crashes: 2, ..CALM },
        reaches: &["all captured", "failed", "unproven failure proven"],
        ..SMALL[0]
    },
    Setup {
        name: "big: copies, refusals, a crash",
        jobs: COPIES,
        delays: 2,
        budget: CRASH,
        says: &[Said::Captured, Said::Nothing, Said::Failed(DENIED), Said::Failed(ILLEGAL)],
        reaches: &["all captured", "unproven failure proven"],
        ..BASE
    },
    Setup {
        name: "big: two ids, a crash, a lease that runs out",
        jobs: TWO_IDS,
        budget: Budget { crashes: 1, pauses: 1, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "big: two ids, Redis unavailable twice",
        jobs: TWO_IDS,
        budget: Budget { outages: 2, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "big: two ids handed over, a crash",
        jobs: TWO_IDS,
        prefetch: [2, 1],
        delays: 0,
        in_flight: false,
        budget: CRASH,
        reaches: &["all captured", "hand-over"],
        ..BASE
    },
    Setup {
        name: "big: two operators, two crashes, two replays",
        delays: 0,
        budget: Budget { crashes: 2, acts: 2, ..CALM },
        operators: 2,
        says: &[Said::Captured, Said::Nothing, Said::Failed(RISK), Said::Failed(DENIED)],
        reaches: &["fresh id captured"],
        ..BASE
    },
    Setup {
        name: "big: copies, two replays, a lease that runs out",
        jobs: COPIES,
        delays: 0,
        budget: Budget { pauses: 1, acts: 2, ..CALM },
        operators: 1,
        says: REFUSED,
        reaches: &["fresh id captured"],
        ..BASE
    },
    Setup {
        name: "big: time passes, copies and a crash",
        jobs: COPIES,
        delays: 0,
        expires: true,
        ages: true,
        budget: CRASH,
        reaches: &["all captured", "expired"],
        ..BASE
    },
    Setup {
        name: "big: time passes, a crash and a replay",
        expires: true,
        ages: true,
        operators: 1,
        budget: Budget { crashes: 1, acts: 1, ..CALM },
        reaches: &["all captured", "expired"],
        ..BASE
    },
];
