//! The configurations: the published jobs, the possible faults and their number, and the states
//! that the search must find.
//!
//! Each search covers all states, except where a rule must be found broken: it then ends at the
//! first violation.

use capture_worker::domain::capture::class::Class;

use crate::{
    domain::{CONFLICT, DENIED, ILLEGAL, IN_PROCESS, PROCESS_FAIL, RISK, Said, TRAFFIC, UNKNOWN},
    properties::{
        FAILED_STANDS, FRESH, HOLD, NO_LOSS, NO_OVERLAP, ONE_CAPTURE, SIGNED_IS_TRUE,
        UNSENT_IS_TRUE,
    },
    state::{Budget, Mutation, Replay, Setup},
};

pub(crate) const CALM: Budget =
    Budget { crashes: 0, cuts: 0, pauses: 0, outages: 0, losses: 0, acts: 0 };
pub(crate) const CRASH: Budget = Budget { crashes: 1, ..CALM };
pub(crate) const COPIES: &[(u8, u8)] = &[(0, 0), (0, 0)];
pub(crate) const TWO_IDS: &[(u8, u8)] = &[(0, 0), (1, 0)];
const ANSWERED_OR_NOT: &[Said] = &[Said::Captured, Said::Nothing];
pub(crate) const REFUSED: &[Said] = &[Said::Captured, Said::Nothing, Said::Failed(DENIED)];

/// One job, one retry, and no faults except calls without a reply. The other configurations change
/// this one.
pub(crate) const BASE: Setup = Setup {
    name: "",
    jobs: &[(0, 0)],
    payments: [0, 0, 1],
    prefetch: [1, 1],
    delays: 1,
    budget: CALM,
    operators: 0,
    says: ANSWERED_OR_NOT,
    in_flight: true,
    late: false,
    deaf: false,
    returns_max: None,
    expires: false,
    ages: false,
    forged: false,
    dead: &[],
    replay: Replay::Closes,
    mutation: None,
    ends: false,
    reaches: &[],
    breaks: &[],
};

/// The configurations that every test run searches.
pub(crate) const SMALL: &[Setup] = &[
    Setup {
        name: "one job, all replies, a crash, poison",
        deaf: true,
        budget: CRASH,
        returns_max: Some(1),
        says: &[
            Said::Captured,
            Said::Nothing,
            Said::Failed(RISK),
            Said::Failed(PROCESS_FAIL),
            Said::Failed(DENIED),
            Said::Failed(ILLEGAL),
            Said::Unsure(UNKNOWN),
            Said::Unsure(IN_PROCESS),
            Said::Unsure(TRAFFIC),
            Said::Unsigned,
            Said::NotSent,
        ],
        reaches: &["all captured", "failed", "poison"],
        ..BASE
    },
    Setup {
        name: "copies, a crash",
        jobs: COPIES,
        budget: CRASH,
        says: &[Said::Captured, Said::Nothing, Said::Failed(RISK)],
        reaches: &["all captured", "known outcome", "failed", "granted to the other worker"],
        ..BASE
    },
    Setup {
        name: "copies, a refusal that precedes the id",
        ends: true,
        jobs: COPIES,
        delays: 2,
        says: REFUSED,
        reaches: &["all captured", "failed", "unproven failure proven"],
        ..BASE
    },
    Setup {
        name: "copies of two amounts",
        jobs: &[(0, 0), (0, 1)],
        says: &[Said::Captured, Said::Nothing, Said::Failed(CONFLICT)],
        reaches: &["conflict"],
        ..BASE
    },
    Setup {
        name: "copies, a lost session",
        jobs: COPIES,
        budget: Budget { cuts: 1, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "two ids, a crash",
        jobs: TWO_IDS,
        delays: 0,
        budget: CRASH,
        reaches: &["all captured", "granted to the other worker"],
        ..BASE
    },
    Setup {
        name: "two ids, a lease that runs out",
        ends: true,
        jobs: TWO_IDS,
        budget: Budget { pauses: 1, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "two ids, Redis unavailable once",
        ends: true,
        jobs: TWO_IDS,
        delays: 0,
        budget: Budget { outages: 1, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "two ids, Redis loses its data",
        jobs: TWO_IDS,
        budget: Budget { losses: 1, ..CALM },
        reaches: &["all captured"],
        ..BASE
    },
    Setup {
        name: "two ids, in process",
        jobs: TWO_IDS,
        says: &[
            Said::Captured,
            Said::Failed(RISK),
            Said::Unsure(IN_PROCESS),
            Said::Unsure(UNKNOWN),
        ],
        reaches: &["all captured", "failed"],
        ..BASE
    },
    Setup { name: "two payments", jobs: &[(0, 0), (2, 0)], reaches: &["all captured"], ..BASE },
    Setup {
        name: "copies and another id, handed over",
        jobs: &[(0, 0), (0, 0), (1, 0)],
        prefetch: [2, 1],
        delays: 0,
        in_flight: false,
        reaches: &["all captured", "hand-over", "known outcome", "granted to the other worker"],
        ..BASE
    },
    Setup {
        name: "two ids handed over, Redis unavailable once",
        jobs: TWO_IDS,
        prefetch: [2, 1],
        delays: 0,
        in_flight: false,
        budget: Budget { outages: 1, ..CALM },
        reaches: &["all captured", "hand-over"],
        ..BASE
    },
    Setup {
        name: "time passes",
        ends: true,
        jobs: COPIES,
        delays: 0,
        expires: true,
        ages: true,
        reaches: &["all captured", "expired"],
        ..BASE
    },
    Setup {
        name: "two operators, a crash",
        delays: 0,
        budget: Budget { crashes: 1, acts: 2, ..CALM },
        operators: 2,
        says: REFUSED,
        reaches: &["fresh id captured", "dead in doubt, captured after a replay"],
        ..BASE
    },
    Setup {
        name: "copies, an operator, a lease that runs out",
        jobs: COPIES,
        delays: 0,
        budget: Budget { pauses: 1, acts: 1, ..CALM },
        operators: 1,
        says: REFUSED,
        reaches: &["fresh id captured"],
        ..BASE
    },
    GRANDCHILD,
    DOUBT_BESIDE_CHILD,
    Setup {
        name: "a replaced id redelivered, Redis loses its data",
        budget: Budget { crashes: 1, acts: 1, losses: 1, ..CALM },
        operators: 1,
        says: &[Said::Captured, Said::Failed(DENIED)],
        reaches: &["fresh id captured"],
        ..BASE
    },
    FORGED,
];

/// Two dead copies of one id, which is replaced twice, and a Redis that loses its data in between.
const GRANDCHILD: Setup = Setup {
    name: "two dead copies of an id, a grandchild, Redis loses its data",
    jobs: COPIES,
    dead: &[Class::Access, Class::Access],
    delays: 0,
    in_flight: false,
    budget: Budget { losses: 1, acts: 3, ..CALM },
    operators: 1,
    says: &[Said::Captured, Said::Failed(DENIED)],
    reaches: &["fresh id captured"],
    ..BASE
};

/// One dead copy of an id is replaced. Another one, in doubt, is replayed under the id itself.
/// Inquiries may have no reply.
const DOUBT_BESIDE_CHILD: Setup = Setup {
    name: "a copy in doubt beside a replaced one, data loss, inquiries without reply",
    jobs: COPIES,
    dead: &[Class::Access, Class::InDoubt],
    delays: 1,
    in_flight: false,
    deaf: true,
    budget: Budget { losses: 1, acts: 2, ..CALM },
    operators: 1,
    says: &[Said::Captured, Said::Failed(DENIED)],
    reaches: &["fresh id captured"],
    ..BASE
};

/// Headers of a publisher that claim a verdict that the gateway never gave.
const FORGED: Setup = Setup {
    name: "forged headers: sent, and refused",
    forged: true,
    says: REFUSED,
    reaches: &["all captured"],
    ..BASE
};

/// Mutations: the protocol is broken on purpose, and the model must detect it.
pub(crate) const MUTATIONS: &[Setup] = &[
    Setup {
        name: "mutation: the ack comes before the publish",
        budget: CRASH,
        mutation: Some(Mutation::AckFirst),
        breaks: &[NO_LOSS],
        ..BASE
    },
    Setup {
        name: "mutation: an id in doubt is replaced without an inquiry",
        delays: 0,
        budget: Budget { acts: 1, ..CALM },
        operators: 1,
        mutation: Some(Mutation::FreshWithoutInquiry),
        breaks: &[ONE_CAPTURE, FRESH],
        ..BASE
    },
    Setup {
        name: "mutation: a release does not compare the token",
        jobs: TWO_IDS,
        budget: Budget { pauses: 1, ..CALM },
        prefetch: [2, 2],
        mutation: Some(Mutation::ReleaseAnyLease),
        breaks: &[NO_OVERLAP],
        ..BASE
    },
    Setup {
        name: "mutation: every F is evidence",
        says: REFUSED,
        mutation: Some(Mutation::BelieveEveryF),
        breaks: &[FAILED_STANDS],
        ..BASE
    },
    Setup {
        name: "mutation: the sent marker is not kept",
        says: REFUSED,
        mutation: Some(Mutation::ForgetSent),
        breaks: &[FAILED_STANDS],
        ..BASE
    },
    Setup {
        name: "mutation: the in-doubt block is not checked",
        jobs: TWO_IDS,
        mutation: Some(Mutation::NoHold),
        breaks: &[HOLD],
        ..BASE
    },
    Setup {
        name: "mutation: an unrecorded refusal of class access, and a redelivery posts again",
        budget: CRASH,
        says: &[Said::Captured, Said::Failed(DENIED)],
        mutation: Some(Mutation::ForgetAccess),
        breaks: &[FAILED_STANDS],
        ..BASE
    },
    Setup {
        name: "mutation: such a refusal, and a fresh id while the parent is still in the queue",
        budget: Budget { crashes: 1, acts: 1, ..CALM },
        operators: 1,
        says: &[Said::Captured, Said::Failed(DENIED)],
        mutation: Some(Mutation::ForgetAccess),
        replay: Replay::Inquires,
        breaks: &[ONE_CAPTURE],
        ..BASE
    },
    Setup {
        name: "mutation: a job stops waiting with an outdated sent marker",
        jobs: COPIES,
        budget: CRASH,
        expires: true,
        ages: true,
        mutation: Some(Mutation::StaleMark),
        breaks: &[UNSENT_IS_TRUE],
        ..BASE
    },
    Setup {
        name: "mutation: only the child of an id is searched",
        mutation: Some(Mutation::OnlyTheChild),
        reaches: &[],
        breaks: &[ONE_CAPTURE, FRESH],
        ..GRANDCHILD
    },
    Setup {
        name: "mutation: a sent id is posted after one inquiry, even without a reply",
        mutation: Some(Mutation::OneInquiry),
        reaches: &[],
        breaks: &[ONE_CAPTURE],
        ..DOUBT_BESIDE_CHILD
    },
    Setup {
        name: "mutation: a refusal that only headers report ends an id",
        mutation: Some(Mutation::TrustHeaders),
        reaches: &[],
        breaks: &[SIGNED_IS_TRUE],
        ..FORGED
    },
    Setup {
        name: "mutation: a fresh id is posted without a check of its ancestors",
        mutation: Some(Mutation::NoForebears),
        reaches: &[],
        breaks: &[ONE_CAPTURE],
        ..GRANDCHILD
    },
];

/// What the protocol can't guarantee. The search must find each violation, so that no reader
/// assumes the guarantee.
pub(crate) const LIMITS: &[Setup] = &[
    Setup {
        name: "limit: a copy without headers of a replaced id, and Redis loses its data",
        jobs: COPIES,
        budget: Budget { acts: 1, losses: 1, ..CALM },
        operators: 1,
        says: &[Said::Captured, Said::Failed(DENIED)],
        breaks: &[ONE_CAPTURE],
        ..BASE
    },
    Setup {
        name: "limit: Redis is unavailable when a refusal is to be recorded",
        budget: Budget { crashes: 1, outages: 1, ..CALM },
        says: &[Said::Captured, Said::Failed(DENIED)],
        breaks: &[FAILED_STANDS],
        ..BASE
    },
    Setup {
        name: "limit: an unrecorded refusal, and a fresh id after an inquiry only",
        budget: Budget { crashes: 1, outages: 1, acts: 1, ..CALM },
        operators: 1,
        says: &[Said::Captured, Said::Failed(DENIED)],
        replay: Replay::Inquires,
        breaks: &[ONE_CAPTURE],
        ..BASE
    },
    Setup {
        name: "limit: a request is executed after an inquiry that did not show it",
        delays: 2,
        late: true,
        says: REFUSED,
        breaks: &[FAILED_STANDS],
        ..BASE
    },
];
