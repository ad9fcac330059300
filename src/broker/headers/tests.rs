//! What is read of headers, and what goes on.

use super::*;

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
fn what_is_carried_is_read_back() {
    let history = History {
        attempts: 3,
        deferrals: 2,
        first_seen_ms: NOW_MS - 5,
        last_word: Some(LastWord::new("UNKNOWN_EXCEPTION", "U")),
        sent: true,
        redelivered: false,
        replays: 1,
        returns: 4,
        parent: Some("p".into()),
        origin: Some("o".into()),
    };
    let carried = carry(&BasicProperties::default(), &history, None);
    assert_eq!(read(&carried, false, NOW_MS), history);
}

#[test]
fn nonsense_counts_as_absent() {
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
    assert_eq!(read(&hostile, false, NOW_MS), fresh);
    let old = properties(&[(FIRST_SEEN, AMQPValue::LongLongInt(YEAR_2020_MS - 1))]);
    assert_eq!(read(&old, false, NOW_MS).first_seen_ms, NOW_MS);
}

#[test]
fn whatever_stands_in_sent_but_false_is_true() {
    for value in [AMQPValue::Void, long("false"), AMQPValue::LongInt(0), AMQPValue::Boolean(true)] {
        assert!(read(&properties(&[(SENT, value)]), false, NOW_MS).sent);
    }
    assert!(read(&properties(&[(CLASS, long("poison"))]), false, NOW_MS).sent);
}

#[test]
fn returns_add_up_the_brokers_count() {
    let returned = properties(&[
        (RETURNS, AMQPValue::LongInt(3)),
        (DELIVERY_COUNT, AMQPValue::LongLongInt(2)),
    ]);
    assert_eq!(read(&returned, true, NOW_MS).returns, 5);
    assert_eq!(read(&BasicProperties::default(), true, NOW_MS).returns, 1);
}

#[test]
fn what_the_broker_would_act_on_is_not_republished() {
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
fn headers_that_fill_the_frame_give_way() {
    let original =
        properties(&[("huge", long(&"x".repeat(HEADERS_BYTES_MAX))), ("small", long("x"))]);
    let names = names(&carry(&original, &History::default(), None));
    assert!(names.contains(&"small".to_owned()) && !names.contains(&"huge".to_owned()));
}

/// In a wait queue, a message of a higher priority keeps the others from expiring.
#[test]
fn a_priority_travels_as_a_header_and_is_given_back_at_the_end() {
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
fn no_priority_is_made_of_nothing_or_of_nonsense() {
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
fn a_death_in_a_queue_of_ours_counts_unless_the_queue_waits() {
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
fn a_refused_result_is_carried_on_until_it_is_told() {
    let refused = RefusedResult { times: 3, ended: Some(Class::Unreachable) };
    let mut waits = carry(&BasicProperties::default(), &History::default(), None);
    put_refused_result(&mut waits, &refused);
    assert_eq!(refused_result(&waits), refused);
    let told = carry(&waits, &History::default(), None);
    assert_eq!(refused_result(&told), RefusedResult::default());
    let nonsense = properties(&[(REFUSALS, long("3")), (ENDED, long("nonsense"))]);
    assert_eq!(refused_result(&nonsense), RefusedResult::default());
}
