//! What a replay may send, by class, and what the gateway's evidence means for it.

use super::*;
use crate::domain::capture::family::fresh_id;
use crate::domain::replay::decision::{Decision, decide};
use crate::domain::replay::evidence::{CaptureSeen, PaymentSeen};
use crate::domain::replay::refusal::{EvidenceRefusal, PolicyRefusal};
use crate::domain::replay::{Changes, Replay, ReplayPolicy, prepare};

fn prepared(dead_letter: &DeadLetter, changes: &Changes) -> Result<Replay, PolicyRefusal> {
    prepare(dead_letter, changes, now())
}

fn unchanged(dead_letter: &DeadLetter) -> Result<Replay, PolicyRefusal> {
    prepared(dead_letter, &Changes::default())
}

fn with_body(class: Class, body: &str) -> DeadLetter {
    DeadLetter {
        job: Job::parse(body.as_bytes()),
        body: body.as_bytes().into(),
        ..dead_letter(class, "c")
    }
}

fn decided(dead_letter: &DeadLetter, seen: &CaptureSeen, payment: &PaymentSeen) -> Decision {
    decide(dead_letter, unchanged(dead_letter).unwrap(), seen, payment, now())
}

/// Made by `printf 'capture-worker/fresh-id/1\nshipment-1' | sha256sum`, and the same for that id.
#[test]
fn the_fresh_id_depends_only_on_its_parent() {
    assert_eq!(fresh_id("shipment-1"), SHIPMENT_1);
    assert_eq!(fresh_id(SHIPMENT_1), SHIPMENT_1_AGAIN);
    assert_eq!(fresh_id(&"é".repeat(64)).chars().count(), 43);
}

const SHIPMENT_1: &str = "cw-adb0b29ad9e5dee3f93476c08b9fd1987d949b23";
const SHIPMENT_1_AGAIN: &str = "cw-868573710eb23462b495efba881716b3a64d00cf";

#[test]
fn the_policy_belongs_to_the_class() {
    use ReplayPolicy::{FreshId, Never, SameBytes, SameId};
    let table = [
        (Class::Authorization, Never),
        (Class::Order, FreshId),
        (Class::Limit, FreshId),
        (Class::Contract, FreshId),
        (Class::Access, FreshId),
        (Class::Request, FreshId),
        (Class::Conflict, Never),
        (Class::Risk, FreshId),
        (Class::Payer, FreshId),
        (Class::Provider, FreshId),
        (Class::UnknownCode, FreshId),
        (Class::InDoubt, SameId),
        (Class::Unreachable, SameId),
        (Class::Expired, SameId),
        (Class::Malformed, SameBytes),
        (Class::Poison, SameBytes),
    ];
    for (class, policy) in table {
        let sent =
            unchanged(&dead_letter(class, "c")).map(|replay| (replay.policy, replay.id.unwrap()));
        match policy {
            Never => assert!(sent.is_err(), "{class}"),
            FreshId => assert_eq!(sent, Ok((policy, fresh_id("c"))), "{class}"),
            SameId | SameBytes => assert_eq!(sent, Ok((policy, "c".into())), "{class}"),
        }
    }
    assert_eq!(ReplayPolicy::of(Class::Access, false), SameId);
}

#[test]
fn an_unsigned_verdict_allows_no_fresh_id() {
    for class in Class::ALL {
        let unsigned = DeadLetter { signed: false, ..dead_letter(class, "c") };
        if let Ok(replay) = unchanged(&unsigned) {
            assert_ne!(replay.policy, ReplayPolicy::FreshId, "{class}");
        }
    }
}

#[test]
fn a_replay_of_the_same_id_keeps_sent_and_last_reply() {
    let carried = History {
        attempts: 9,
        deferrals: 3,
        returns: 5,
        replays: 1,
        redelivered: true,
        parent: Some("p".into()),
        ..with_last_word("CAPTURE_IN_PROCESS", "U")
    };
    let replay =
        unchanged(&DeadLetter { history: carried.clone(), ..dead_letter(Class::InDoubt, "c") })
            .unwrap();
    let kept = History {
        last_reply: carried.last_reply.clone(),
        sent: true,
        replays: 2,
        parent: Some("p".into()),
        ..History::default()
    };
    assert_eq!(replay.history, kept);
    // A dead letter of these classes was sent, even if no header says so.
    for (class, sent) in
        [(Class::InDoubt, true), (Class::Poison, true), (Class::Unreachable, false)]
    {
        assert_eq!(unchanged(&dead_letter(class, "c")).unwrap().history.sent, sent, "{class}");
    }
}

#[test]
fn a_fresh_id_begins_unsent_and_knows_its_parent_and_origin() {
    let carried = History { attempts: 2, replays: 3, ..with_last_word("RISK_REJECT", "F") };
    let replay =
        unchanged(&DeadLetter { history: carried, ..dead_letter(Class::Risk, "c") }).unwrap();
    let begun = History {
        replays: 4,
        parent: Some("c".into()),
        origin: Some("c".into()),
        ..History::default()
    };
    assert_eq!(replay.history, begun);
    let child = DeadLetter { history: begun, ..dead_letter(Class::Risk, "child") };
    let grandchild = unchanged(&child).unwrap();
    assert_eq!(grandchild.history.origin.as_deref(), Some("c"));
    assert_eq!(grandchild.history.parent.as_deref(), Some("child"));
    assert_eq!(Job::parse(&grandchild.body).unwrap().capture_request_id, fresh_id("child"));
}

#[test]
fn copies_with_different_replay_counts_have_one_child() {
    let copy = |replays| DeadLetter {
        history: History { replays, ..history() },
        ..dead_letter(Class::Payer, "c")
    };
    let bodies = [0, 1, 7].map(|replays| unchanged(&copy(replays)).unwrap().body);
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(bodies[0], bodies[2]);
}

#[test]
fn an_amount_only_goes_down_and_only_for_class_limit() {
    let lower = |value| Changes { capture_value: Some(value), ..Changes::default() };
    let replay = prepared(&dead_letter(Class::Limit, "c"), &lower(60)).unwrap();
    assert_eq!(replay.amount, Some(hkd("60")));
    assert_eq!(Job::parse(&replay.body).unwrap().amount, hkd("60"));
    for value in [0, 100, 101] {
        assert!(prepared(&dead_letter(Class::Limit, "c"), &lower(value)).is_err(), "{value}");
    }
    for class in Class::ALL.into_iter().filter(|class| *class != Class::Limit) {
        assert!(prepared(&dead_letter(class, "c"), &lower(60)).is_err(), "{class}");
    }
}

#[test]
fn an_expired_job_needs_a_new_time_unless_it_was_sent() {
    let body = concat!(
        r#"{"captureRequestId":"c","paymentId":"p","expiresAt":"2020-01-01T00:00:00Z","#,
        r#""captureAmount":{"currency":"HKD","value":"1"}}"#
    );
    for (class, goes) in [
        (Class::Expired, false),
        (Class::Unreachable, false),
        (Class::Risk, false),
        (Class::InDoubt, true),
    ] {
        assert_eq!(unchanged(&with_body(class, body)).is_ok(), goes, "{class}");
    }
    let later = now() + Duration::from_secs(3600);
    let changes = Changes { expires_at: Some(later), ..Changes::default() };
    let replay = prepared(&with_body(Class::Expired, body), &changes).unwrap();
    assert_eq!(Job::parse(&replay.body).unwrap().expires_at, Some(later));
    assert!(prepared(&dead_letter(Class::Poison, "c"), &changes).is_err(), "byte for byte");
}

#[test]
fn an_invalid_body_is_replayed_byte_for_byte_or_refused() {
    let malformed = with_body(Class::Malformed, "{]");
    assert_eq!(unchanged(&malformed).unwrap().body, b"{]");
    for class in [Class::InDoubt, Class::Risk, Class::Expired] {
        assert!(unchanged(&with_body(class, "{]")).is_err(), "{class}");
    }
}

#[test]
fn a_fresh_id_needs_evidence_that_its_parent_captured_nothing() {
    let risk = dead_letter(Class::Risk, "c");
    let seen = |transactions| {
        let body = InquiryBody {
            payment_id: Some("p".into()),
            transactions: Some(transactions),
            ..InquiryBody::default()
        };
        CaptureSeen::of(&answer(Signature::Good, "S", "SUCCESS", body), &job(), &Codes::default())
    };
    let nothing = PaymentSeen::default();
    let went = |seen: &CaptureSeen| match decided(&risk, seen, &nothing) {
        Decision::Send(_) => "sent",
        Decision::Settle(_) => "settled",
        Decision::Refuse(_) => "refused",
    };
    let item = |status: &str, code: Option<&str>| vec![transaction(status, code)];
    assert_eq!(went(&seen(Vec::new())), "sent");
    assert_eq!(went(&seen(item("FAIL", Some("RISK_REJECT")))), "sent");
    assert_eq!(went(&seen(item("SUCCESS", None))), "settled");
    for status in ["PROCESSING", "PENDING", "NEW_WORD"] {
        assert_eq!(went(&seen(item(status, None))), "refused", "{status}");
    }
    let other = Transaction { amount: Some(Ok(hkd("99"))), ..transaction("SUCCESS", None) };
    assert_eq!(went(&seen(vec![other])), "refused");
    for reply in [
        answer(Signature::Missing, "S", "SUCCESS", InquiryBody::default()),
        answer(Signature::Good, "F", "ORDER_NOT_EXIST", InquiryBody::default()),
        answer(Signature::Missing, "F", "INVALID_SIGNATURE", InquiryBody::default()),
        answer(Signature::Good, "U", "REQUEST_TRAFFIC_EXCEED_LIMIT", InquiryBody::default()),
        Reply::NotSent("refused".into()),
    ] {
        assert_eq!(
            went(&CaptureSeen::of(&reply, &job(), &Codes::default())),
            "refused",
            "{reply:?}"
        );
    }
}

#[test]
fn the_rest_of_the_authorization_limits_a_fresh_id() {
    let limit = dead_letter(Class::Limit, "c");
    let left = |value: &str, captured: Vec<Transaction>| {
        let body = InquiryBody {
            payment_id: Some("p".into()),
            transactions: Some(captured),
            payment_amount: Some(Ok(hkd(value))),
            ..InquiryBody::default()
        };
        PaymentSeen::of(&answer(Signature::Good, "S", "SUCCESS", body), &job(), &history())
    };
    let goes = |payment: &PaymentSeen| {
        matches!(decided(&limit, &CaptureSeen::NoSuchCapture, payment), Decision::Send(_))
    };
    assert!(goes(&left("100", Vec::new())));
    let captured = || vec![transaction("SUCCESS", None)];
    assert!(goes(&left("200", captured())));
    assert_eq!(left("160", captured()).left, Some(60));
    let Decision::Refuse(refusal) =
        decided(&limit, &CaptureSeen::NoSuchCapture, &left("160", captured()))
    else {
        panic!("sent")
    };
    let currency = hkd("60").currency();
    let over = EvidenceRefusal::OverAuthorization { currency, left: 60, may_lower: true };
    assert_eq!(refusal, over.into());
    let over = PaymentSeen {
        authorized_until: Some("2020-01-01T00:00:00Z".into()),
        ..PaymentSeen::default()
    };
    assert!(!goes(&over));
}

/// By now, only the gateway may know that the id was replaced.
#[test]
fn an_id_that_was_sent_is_replayed_only_after_a_signed_inquiry() {
    let nothing = || CaptureSeen::Nothing { reason: "HTTP status 503".into(), code: None };
    let none = PaymentSeen::default();
    for (class, goes) in [
        (Class::InDoubt, false),
        (Class::Poison, false),
        (Class::Unreachable, true),
        (Class::Expired, true),
    ] {
        let dead_letter = dead_letter(class, "c");
        let sent = DeadLetter { history: sent_history(), ..dead_letter.clone() };
        for (dead_letter, goes) in [(dead_letter, goes), (sent, false)] {
            let decision = decided(&dead_letter, &nothing(), &none);
            assert_eq!(matches!(decision, Decision::Send(_)), goes, "{class}");
            if let Decision::Refuse(refusal) = decision {
                let reason = "HTTP status 503".to_owned();
                assert_eq!(refusal, EvidenceRefusal::OutcomeUnknown(reason).into());
            }
            let decision = decided(&dead_letter, &CaptureSeen::NoSuchCapture, &none);
            assert!(matches!(decision, Decision::Send(_)), "{class}");
        }
    }
}

#[test]
fn a_fresh_id_is_sent_again_only_without_later_active_ids() {
    let risk = dead_letter(Class::Risk, "c");
    let item = |generation: usize, amount: &str, status: &str| Transaction {
        request_id: Some((0..generation).fold("c".to_owned(), |id, _| fresh_id(&id))),
        amount: Some(Ok(hkd(amount))),
        ..transaction(status, None)
    };
    for (items, goes) in [
        (vec![item(1, "100", "SUCCESS")], true),
        (vec![item(1, "100", "PROCESSING")], true),
        (vec![item(1, "99", "SUCCESS")], false),
        (vec![item(2, "100", "SUCCESS")], false),
        (vec![item(1, "100", "FAIL"), item(2, "100", "SUCCESS")], false),
        (vec![item(1, "100", "FAIL"), item(3, "100", "PROCESSING")], false),
        (vec![item(1, "100", "FAIL"), item(2, "100", "FAIL")], true),
    ] {
        let body = InquiryBody {
            payment_id: Some("p".into()),
            transactions: Some(items.clone()),
            ..InquiryBody::default()
        };
        let reply = answer(Signature::Good, "S", "SUCCESS", body);
        let payment = PaymentSeen::of(&reply, &job(), &history());
        let seen = CaptureSeen::of(&reply, &job(), &Codes::default());
        assert_eq!(seen, CaptureSeen::NoSuchCapture, "none of them is a capture of the id itself");
        let decision = decided(&risk, &seen, &payment);
        assert_eq!(matches!(decision, Decision::Send(_)), goes, "{items:?}");
    }
}

/// A dead letter of class `limit` with these fields beside the contract's.
fn over_the_limit(fields: &str) -> DeadLetter {
    let amount = r#"{"currency":"HKD","value":"100"}"#;
    let body =
        format!(r#"{{"captureRequestId":"c","paymentId":"p","captureAmount":{amount},{fields}}}"#);
    with_body(Class::Limit, &body)
}

#[test]
fn a_fresh_id_keeps_the_forwarded_fields() {
    let fields = r#""captureType" : "NON_FINAL","goods":null,"transit":{"legs":[1.0e2]}"#;
    let lower = Changes { capture_value: Some(60), ..Changes::default() };
    let replay = prepared(&over_the_limit(fields), &lower).unwrap();
    assert!(String::from_utf8(replay.body.clone()).unwrap().contains(fields));
    let job = Job::parse(&replay.body).unwrap();
    assert_eq!(job.forwarded.members(), r#","captureType":"NON_FINAL","transit":{"legs":[1.0e2]}"#);
}

#[test]
fn an_amount_with_goods_is_not_lowered() {
    let lower = Changes { capture_value: Some(60), ..Changes::default() };
    let goods = over_the_limit(r#""captureType":"NON_FINAL","goods":[{"goodsQuantity":"1"}]"#);
    assert_eq!(prepared(&goods, &lower), Err(PolicyRefusal::HasGoods));
    assert!(unchanged(&goods).is_ok());
    let seen = PaymentSeen { left: Some(60), ..PaymentSeen::default() };
    let Decision::Refuse(refusal) = decided(&goods, &CaptureSeen::NoSuchCapture, &seen) else {
        panic!("sent")
    };
    let currency = hkd("60").currency();
    let over = EvidenceRefusal::OverAuthorization { currency, left: 60, may_lower: false };
    assert_eq!(refusal, over.into());
}

#[test]
fn a_lowered_final_capture_gives_up_the_rest() {
    let gives_up = |fields: &str, value: Option<u64>| {
        let changes = Changes { capture_value: value, ..Changes::default() };
        prepared(&over_the_limit(fields), &changes).unwrap().gives_up_rest
    };
    assert!(gives_up(r#""captureType":"FINAL""#, Some(60)));
    assert!(gives_up(r#""captureType":null"#, Some(60)), "the gateway's default is FINAL");
    assert!(!gives_up(r#""captureType":"NON_FINAL""#, Some(60)));
    assert!(!gives_up(r#""captureType":"FINAL""#, None));
}

#[test]
fn invalid_forwarded_fields_allow_no_fresh_id() {
    let broken = over_the_limit(r#""captureType":"LAST""#);
    let refusal = unchanged(&broken).unwrap_err();
    assert!(matches!(refusal, PolicyRefusal::InvalidForwardedFields(_)), "{refusal:?}");
    let in_doubt = DeadLetter { class: Class::InDoubt, ..broken };
    assert!(unchanged(&in_doubt).is_ok(), "a job that was sent is followed to its end");
}

/// The worker can't know this: it would post the id again once Redis has lost the failure.
#[test]
fn an_id_is_not_replayed_beside_its_active_child() {
    let seen = |status: &str| {
        let child = Transaction { request_id: Some(fresh_id("c")), ..transaction(status, None) };
        let body = InquiryBody {
            payment_id: Some("p".into()),
            transactions: Some(vec![child]),
            ..InquiryBody::default()
        };
        PaymentSeen::of(&answer(Signature::Good, "S", "SUCCESS", body), &job(), &history())
    };
    let doubt = dead_letter(Class::InDoubt, "c");
    for (status, goes) in [("SUCCESS", false), ("PROCESSING", false), ("FAIL", true)] {
        let decision = decided(&doubt, &CaptureSeen::NoSuchCapture, &seen(status));
        assert_eq!(matches!(decision, Decision::Send(_)), goes, "{status}");
    }
}
