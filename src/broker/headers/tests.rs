//! Tests of which headers are read, and which are republished.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{dead_letter::*, job::*, names::*, properties::*, republish::*, values::*};
use crate::domain::{
    capture::class::Class,
    job::{
        forward::ForwardFields,
        history::{History, LastReply},
    },
    replay::dead_letter::DeadLetter,
    settlement::refused::RefusedResult,
};

const NOW_MS: i64 = 1_800_000_000_000;

fn properties(headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let table: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| (ShortString::from(*name), value.clone())).collect();
    BasicProperties::default().with_headers(table.into())
}

fn names(properties: &BasicProperties) -> Vec<String> {
    let table = properties.headers().as_ref().unwrap();
    table.inner().keys().map(ToString::to_string).collect()
}

#[test]
fn a_carried_history_is_read_back() {
    let history = History {
        attempts: 3,
        deferrals: 2,
        first_seen_ms: NOW_MS - 5,
        last_reply: Some(LastReply::new("UNKNOWN_EXCEPTION", "U")),
        sent: true,
        redelivered: false,
        replays: 1,
        returns: 4,
        parent: Some("p".into()),
        origin: Some("o".into()),
    };
    let carried = carry(&BasicProperties::default(), &history, None);
    assert_eq!(read_history(&carried, false, NOW_MS), history);
}

#[test]
fn an_invalid_header_counts_as_absent() {
    let hostile = properties(&[
        (ATTEMPT, long("7")),
        (DEFERRALS, AMQPValue::LongInt(-1)),
        (FIRST_SEEN, AMQPValue::LongLongInt(NOW_MS + 2 * DAY_MS)),
        (LAST_CODE, AMQPValue::LongInt(1)),
        (LAST_STATUS, AMQPValue::LongString(vec![0xff].into())),
        (REPLAYS, AMQPValue::Void),
        (RETURNS, AMQPValue::Double(1.0)),
        (DELIVERY_COUNT, AMQPValue::LongLongInt(500)),
        (SENT, AMQPValue::Boolean(false)),
    ]);
    let fresh = History { first_seen_ms: NOW_MS, ..History::default() };
    assert_eq!(read_history(&hostile, false, NOW_MS), fresh);
    let old = properties(&[(FIRST_SEEN, AMQPValue::LongLongInt(YEAR_2020_MS - 1))]);
    assert_eq!(read_history(&old, false, NOW_MS).first_seen_ms, NOW_MS);
}

#[test]
fn any_value_of_sent_but_false_is_true() {
    for value in [AMQPValue::Void, long("false"), AMQPValue::LongInt(0), AMQPValue::Boolean(true)] {
        assert!(read_history(&properties(&[(SENT, value)]), false, NOW_MS).sent);
    }
    assert!(read_history(&properties(&[(CLASS, long("poison"))]), false, NOW_MS).sent);
}

#[test]
fn the_brokers_delivery_count_is_added_to_returns() {
    let returned = properties(&[
        (RETURNS, AMQPValue::LongInt(3)),
        (DELIVERY_COUNT, AMQPValue::LongLongInt(2)),
    ]);
    assert_eq!(read_history(&returned, true, NOW_MS).returns, 5);
    assert_eq!(read_history(&BasicProperties::default(), true, NOW_MS).returns, 1);
}

#[test]
fn headers_that_the_broker_acts_on_are_not_republished() {
    let original = properties(&[
        ("CC", long("x")),
        ("BCC", long("x")),
        ("x-death", long("x")),
        ("x-first-death-queue", long("x")),
        ("x-last-death-reason", long("x")),
        ("x-delivery-count", AMQPValue::LongInt(3)),
        ("x-capture-class", long("order")),
        ("traceparent", long("00-1")),
        ("theirs", AMQPValue::Boolean(true)),
    ])
    .with_expiration("1000".into())
    .with_user_id("guest".into())
    .with_message_id("m".into());
    let carried = carry(&original, &History::default(), None);
    assert_eq!(carried.expiration(), &None);
    assert_eq!(carried.user_id(), &None);
    assert_eq!(carried.message_id(), &Some("m".into()));
    assert_eq!(names(&carried), ["theirs", "traceparent", ATTEMPT, DEFERRALS, FIRST_SEEN]);
}

#[test]
fn headers_that_exceed_the_frame_are_left_out() {
    let original =
        properties(&[("huge", long(&"x".repeat(HEADERS_BYTES_MAX))), ("small", long("x"))]);
    let names = names(&carry(&original, &History::default(), None));
    assert!(names.contains(&"small".to_owned()) && !names.contains(&"huge".to_owned()));
}

const JOBS: &str = "capture.jobs";

/// One entry of an `x-death` header.
fn death(queue: &str, reason: &str, seconds: u64) -> AMQPValue {
    let mut entry = FieldTable::default();
    entry.insert("queue".into(), long(queue));
    entry.insert("reason".into(), long(reason));
    entry.insert("time".into(), AMQPValue::Timestamp(seconds));
    AMQPValue::FieldTable(entry)
}

fn deaths(entries: &[AMQPValue]) -> AMQPValue {
    AMQPValue::FieldArray(entries.to_vec().into())
}

fn dead_letter(headers: &[(&str, AMQPValue)]) -> DeadLetter {
    read_dead_letter(
        Class::Poison,
        b"{}".to_vec(),
        &properties(headers),
        &ForwardFields::default(),
        JOBS,
        NOW_MS,
    )
}

#[test]
fn the_brokers_reason_is_read_for_the_queue_of_jobs_only() {
    let reason = |headers: &[(&str, AMQPValue)]| {
        dead_letter(headers).broker_death.map(|death| death.reason.word().to_owned())
    };
    let waited = death("capture.wait.1s", "expired", 1_700_000_100);
    let other = death("other.jobs", "maxlen", 1_700_000_300);
    let returned = death(JOBS, "delivery_limit", 1_700_000_200);
    // After one wait, `x-first-death-reason` says `expired` for good.
    let first = ("x-first-death-reason", long("expired"));
    let entries = deaths(&[other.clone(), returned, waited.clone()]);
    let found = [first.clone(), ("x-death", entries)];
    assert_eq!(reason(&found).as_deref(), Some("delivery_limit"));
    assert_eq!(dead_letter(&found).dead_at_ms, Some(1_700_000_200_000));
    // The newest entry comes first.
    let twice = deaths(&[death(JOBS, "maxlen", 2), death(JOBS, "expired", 1)]);
    assert_eq!(reason(&[("x-death", twice)]).as_deref(), Some("maxlen"));
    assert_eq!(reason(&[first.clone(), ("x-death", deaths(&[waited, other]))]), None);
    assert_eq!(reason(&[first]), None);
    assert_eq!(reason(&[("x-death", long("expired"))]), None);
}

#[test]
fn a_kept_reason_counts_only_without_the_brokers_own() {
    let kept = [(BROKER_REASON, long("maxlen")), (BROKER_QUEUE, long(JOBS))];
    let reason = |headers: &[(&str, AMQPValue)]| {
        dead_letter(headers).broker_death.map(|death| death.reason.word().to_owned())
    };
    assert_eq!(reason(&kept).as_deref(), Some("maxlen"));
    let own = ("x-death", deaths(&[death(JOBS, "expired", 1_700_000_000)]));
    assert_eq!(reason(&[kept[0].clone(), kept[1].clone(), own]).as_deref(), Some("expired"));
    assert_eq!(reason(&kept[..1]), None);
    assert_eq!(reason(&[kept[0].clone(), (BROKER_QUEUE, long("other.jobs"))]), None);
    let elsewhere = read_dead_letter(
        Class::Risk,
        Vec::new(),
        &properties(&kept),
        &ForwardFields::default(),
        JOBS,
        NOW_MS,
    );
    assert_eq!(elsewhere.broker_death, None, "the broker dead-letters to one class only");
}

#[test]
fn a_reason_that_a_publisher_wrote_is_not_republished() {
    let forged = properties(&[(BROKER_REASON, long("expired")), (BROKER_QUEUE, long(JOBS))]);
    let carried = carry(&forged, &History::default(), None);
    assert_eq!(names(&carried), [ATTEMPT, DEFERRALS, FIRST_SEEN]);
}

#[test]
fn a_republished_dead_letter_keeps_all_but_acted_on_headers() {
    let original = properties(&[
        ("CC", long("x")),
        ("BCC", long("x")),
        (DELIVERY_COUNT, AMQPValue::LongLongInt(10)),
        ("x-acquired-count", AMQPValue::LongLongInt(12)),
        ("x-death", deaths(&[death(JOBS, "expired", 1_700_000_000)])),
        ("x-first-death-reason", long("expired")),
        (SENT, AMQPValue::Boolean(true)),
        ("theirs", AMQPValue::Boolean(true)),
    ])
    .with_expiration("1000".into())
    .with_user_id("guest".into())
    .with_delivery_mode(1)
    .with_priority(9)
    .with_message_id("m".into());
    assert_eq!(delivery_count(&original), 10);
    let again = republished(&original, JOBS);
    assert_eq!((again.expiration(), again.user_id()), (&None, &None));
    assert_eq!((again.delivery_mode(), again.message_id()), (&Some(1), &Some("m".into())));
    assert_eq!(again.priority(), &Some(9));
    let kept = ["theirs", BROKER_QUEUE, BROKER_REASON, DEAD_AT, SENT, "x-death"];
    assert_eq!(names(&again), [&kept[..], &["x-first-death-reason"]].concat());
    assert_eq!(republished(&again, JOBS), again, "a second time changes nothing");
    // Dead letters of a worker, and audit records, are republished unchanged.
    let own = properties(&[(CLASS, long("risk")), (DEAD_AT, AMQPValue::LongLongInt(NOW_MS))]);
    assert_eq!(republished(&own, JOBS), own);
}

#[test]
fn a_reason_that_would_exceed_the_frame_is_left_out() {
    let huge = long(&"x".repeat(HEADERS_BYTES_MAX - 100));
    let x_death = deaths(&[death(JOBS, "expired", 1_700_000_000)]);
    let again = republished(&properties(&[("huge", huge), ("x-death", x_death)]), JOBS);
    assert_eq!(names(&again), ["huge", "x-death"]);
}

/// In a wait queue, a message of a higher priority keeps the others from expiring.
#[test]
fn a_priority_waits_as_a_header_and_is_restored_at_the_end() {
    let published = BasicProperties::default().with_priority(9);
    let waits = carry(&published, &History::default(), None);
    let waits_again = carry(&waits, &History::default(), None);
    for carried in [&waits, &waits_again] {
        assert_eq!(carried.priority(), &None);
        assert_eq!(number(carried.headers().as_ref().unwrap(), PRIORITY), Some(9));
        assert_eq!(of_result(carried, NOW_MS).priority(), &Some(9));
        let replay = replayed(carried, &History::default());
        assert_eq!(replay.priority(), &Some(9));
        assert!(!names(&replay).contains(&PRIORITY.to_owned()));
    }
    assert_eq!(of_result(&published, NOW_MS).priority(), &Some(9));
}

#[test]
fn an_invalid_priority_header_sets_no_priority() {
    for header in [AMQPValue::LongInt(256), AMQPValue::LongInt(-1), long("9"), AMQPValue::Void] {
        let odd = properties(&[(PRIORITY, header)]);
        let carried = carry(&odd, &History::default(), None);
        assert!(!names(&carried).contains(&PRIORITY.to_owned()), "{odd:?}");
        assert_eq!(of_result(&odd, NOW_MS).priority(), &None);
    }
    let zero = carry(&BasicProperties::default().with_priority(0), &History::default(), None);
    assert_eq!(of_result(&zero, NOW_MS).priority(), &Some(0));
}

#[test]
fn a_death_in_our_queues_counts_except_in_wait_queues() {
    let died_in = |queue: &str| {
        let death: BTreeMap<_, _> = [("queue".into(), long(queue))].into();
        let deaths = vec![AMQPValue::FieldTable(death.into())];
        let table = properties(&[("x-death", AMQPValue::FieldArray(deaths.into()))]);
        names_a_death_of_ours(&table, "capture")
    };
    for ours in ["capture.jobs", "capture.dead.poison", "capture.audit", "capture.waiting"] {
        assert!(died_in(ours), "{ours}");
    }
    for other in ["capture.wait.5s", "captures", "theirs", "", "capture"] {
        assert!(!died_in(other), "{other}");
    }
    assert!(!names_a_death_of_ours(&properties(&[("x-death", long("capture.jobs"))]), "capture"));
}

#[test]
fn a_refused_result_is_carried_until_it_is_published() {
    let refused = RefusedResult { times: 3, ended: Some(Class::Unreachable) };
    let mut waits = carry(&BasicProperties::default(), &History::default(), None);
    put_refused_result(&mut waits, &refused);
    assert_eq!(refused_result(&waits), refused);
    let published = carry(&waits, &History::default(), None);
    assert_eq!(refused_result(&published), RefusedResult::default());
    let nonsense = properties(&[(REFUSALS, long("3")), (ENDED, long("nonsense"))]);
    assert_eq!(refused_result(&nonsense), RefusedResult::default());
}
