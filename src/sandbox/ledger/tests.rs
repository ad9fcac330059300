use super::*;

const NOW: &str = "2026-11-23T10:00:00+08:00";

fn asked(id: &str, currency: &str, value: &str) -> PostedCapture {
    PostedCapture {
        id: id.to_owned(),
        payment_id: "p".to_owned(),
        amount: Money::from_smallest(currency, value).unwrap(),
        fields: Map::new(),
    }
}

fn with(fields: &str, asked: PostedCapture) -> PostedCapture {
    PostedCapture { fields: serde_json::from_str(fields).unwrap(), ..asked }
}

#[test]
fn no_new_id_of_a_payment_captures_after_a_captured_final_one() {
    let mut ledger = Ledger::default();
    let partial = with(r#"{"captureType":"NON_FINAL"}"#, asked("a", "HKD", "60"));
    let last = with(r#"{"captureType":"FINAL"}"#, asked("c", "HKD", "40"));
    assert_eq!(post(&mut ledger, &partial), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("b", "HKD", "1")), SUCCESS, "absent, and not strict");
    assert_eq!(post(&mut ledger, &last), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("d", "HKD", "1")), "ORDER_STATUS_INVALID");
    assert_eq!((post(&mut ledger, &partial), post(&mut ledger, &last)), both(SUCCESS));
}

#[test]
fn a_final_capture_that_fails_ends_nothing() {
    let mut ledger = Ledger::default();
    let last = with(r#"{"captureType":"FINAL"}"#, asked("a", "HKD", "60"));
    ledger.count_post(&last);
    ledger.fail(&last, "RISK_REJECT");
    assert_eq!(post(&mut ledger, &asked("b", "HKD", "60")), SUCCESS);
}

#[test]
fn a_strict_ledger_treats_an_absent_capture_type_as_final() {
    let mut ledger = Ledger { strict: true, ..Ledger::default() };
    ledger.authorize("p", Money::from_smallest("HKD", "100").unwrap());
    let partial = with(r#"{"captureType":"NON_FINAL"}"#, asked("a", "HKD", "60"));
    assert_eq!(post(&mut ledger, &partial), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("b", "HKD", "1")), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("c", "HKD", "1")), "ORDER_STATUS_INVALID");
}

#[test]
fn a_repeated_request_must_have_the_same_fields_as_json() {
    let mut ledger = Ledger::default();
    let request = |fields: &str| with(fields, asked("a", "HKD", "60"));
    let first = request(r#"{"goods":[{"a":1,"b":2}],"captureType":"NON_FINAL"}"#);
    assert_eq!(post(&mut ledger, &first), SUCCESS);
    let same = request(r#"{ "captureType":"NON_F\u0049NAL", "goods":[ {"b":2, "a":1} ] }"#);
    assert_eq!(post(&mut ledger, &same), SUCCESS);
    for other in [
        r#"{"goods":[{"a":1,"b":3}],"captureType":"NON_FINAL"}"#,
        r#"{"goods":[{"a":1,"b":2}],"captureType":"FINAL"}"#,
        r#"{"goods":[{"a":1,"b":2}]}"#,
        r#"{"goods":[{"a":1,"b":2}],"captureType":"NON_FINAL","transit":{}}"#,
    ] {
        assert_eq!(post(&mut ledger, &request(other)), "REPEAT_REQ_INCONSISTENT", "{other}");
    }
}

fn both(code: &str) -> (String, String) {
    (code.to_owned(), code.to_owned())
}

fn post(ledger: &mut Ledger, asked: &PostedCapture) -> String {
    ledger.count_post(asked);
    ledger.capture(asked, NOW).code
}

fn inquired(ledger: &mut Ledger) -> Vec<String> {
    let seen = ledger.inquire("p", NOW).unwrap();
    seen.into_iter().map(|(_, verdict)| verdict.code).collect()
}

#[test]
fn partial_captures_end_at_the_authorized_amount() {
    let mut ledger = Ledger::default();
    ledger.authorize("p", Money::from_smallest("HKD", "100").unwrap());
    assert_eq!(post(&mut ledger, &asked("a", "HKD", "60")), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("b", "HKD", "41")), "CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT");
    assert_eq!(post(&mut ledger, &asked("c", "HKD", "40")), SUCCESS);
    assert_eq!(post(&mut ledger, &asked("d", "USD", "1")), "CURRENCY_NOT_SUPPORT");
    assert_eq!(ledger.totals(), BTreeMap::from([("HKD", 100)]));
}

#[test]
fn the_response_for_an_id_never_changes() {
    let mut ledger = Ledger::default();
    for _ in 0..3 {
        assert_eq!(post(&mut ledger, &asked("a", "HKD", "60")), SUCCESS);
        assert_eq!(post(&mut ledger, &asked("a", "HKD", "61")), "REPEAT_REQ_INCONSISTENT");
    }
    assert_eq!((ledger.movements.len(), ledger.requests["a"].posts), (1, 6));
    let refused = asked("b", "HKD", "60");
    ledger.count_post(&refused);
    ledger.fail(&refused, "RISK_REJECT");
    assert_eq!(post(&mut ledger, &refused), "RISK_REJECT");
    assert_eq!(inquired(&mut ledger), [SUCCESS, "RISK_REJECT"]);
    assert!(ledger.captured_twice().is_empty());
}

#[test]
fn a_capture_in_process_ends_after_its_inquiries() {
    let mut ledger = Ledger::default();
    let a = asked("a", "HKD", "60");
    ledger.count_post(&a);
    ledger.begin(&a, 2, SUCCESS);
    assert_eq!(post(&mut ledger, &a), CAPTURE_IN_PROCESS);
    assert_eq!(inquired(&mut ledger), [PAYMENT_IN_PROCESS]);
    assert_eq!(inquired(&mut ledger), [PAYMENT_IN_PROCESS]);
    assert_eq!(inquired(&mut ledger), [SUCCESS]);
    assert_eq!(post(&mut ledger, &a), SUCCESS);
    assert_eq!((ledger.movements.len(), ledger.requests["a"].posts_in_process), (1, 1));
}

#[test]
fn a_post_that_was_not_executed_leaves_only_its_count() {
    let mut ledger = Ledger::default();
    ledger.count_post(&asked("a", "HKD", "60"));
    assert_eq!(inquired(&mut ledger), Vec::<String>::new());
    assert_eq!(post(&mut ledger, &asked("a", "HKD", "61")), SUCCESS);
    assert_eq!(ledger.requests["a"].posts, 2);
}

#[test]
fn a_strict_ledger_captures_only_authorized_payments() {
    let mut ledger = Ledger { strict: true, ..Ledger::default() };
    assert_eq!(post(&mut ledger, &asked("a", "HKD", "60")), "AUTH_NOT_FOUND");
    assert!(ledger.inquire("p", NOW).is_none());
    ledger.authorize("p", Money::from_smallest("HKD", "100").unwrap());
    assert_eq!(post(&mut ledger, &asked("b", "HKD", "60")), SUCCESS);
}
