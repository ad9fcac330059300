use proptest::prelude::*;

use super::forward::CaptureType;
use super::*;

const GOOD: &str =
    r#"{"captureRequestId":"c1","paymentId":"p1","captureAmount":{"currency":"HKD","value":"10"}}"#;

#[track_caller]
fn check(body: &str, error: &str) {
    let malformed = Job::parse(body.as_bytes()).expect_err(body);
    assert_eq!(malformed.reason.to_string(), error);
}

fn with(fields: &str) -> String {
    let amount = r#"{"currency":"HKD","value":"10"}"#;
    format!(r#"{{"captureRequestId":"c1","paymentId":"p1","captureAmount":{amount},{fields}}}"#)
}

#[test]
fn the_gateways_own_body_is_a_job() {
    let job = Job::parse(GOOD.as_bytes()).unwrap();
    assert_eq!(job.capture_request_id, "c1");
    assert_eq!(job.amount.to_string(), "HKD 0.10");
}

#[test]
fn unknown_fields_may_be_anything_and_repeat() {
    assert!(Job::parse(with(r#""x":1,"x":[{"deep":null}],"":2"#).as_bytes()).is_ok());
    let deep = format!(r#""x":{}1{}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(Job::parse(with(&deep).as_bytes()).is_ok());
}

#[test]
fn every_rule_has_its_own_message() {
    check("", "the body must be one JSON object: EOF while parsing a value at line 1 column 0");
    check("[]", "the body must be one JSON object: found a list at line 1 column 2");
    check("{}", "`captureRequestId` is missing");
    check(r#"{"captureRequestId":7}"#, "`captureRequestId` must be a string, found a number");
    check(r#"{"captureRequestId":""}"#, "`captureRequestId` must be 1 to 64 characters, found 0");
    check(
        r#"{"captureRequestId":"a\u0085b"}"#,
        "`captureRequestId` must have no control characters, found U+0085",
    );
    check(r#"{"captureRequestId":"c1"}"#, "`paymentId` is missing");
    check(
        r#"{"captureRequestId":"c1","paymentId":"p1"}"#,
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, \
         found neither",
    );
    check(
        &with(r#""amount":{"currency":"HKD","value":"0.10"}"#),
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, \
         found both",
    );
    check(&with(r#""paymentId":"p2""#), "`paymentId` must stand only once");
    check(
        &with(r#""expiresAt":"tomorrow""#),
        "`expiresAt` must be an RFC 3339 time such as \"2026-11-30T18:00:00Z\", found `tomorrow`",
    );
    check(&with(r#""expiresAt":7"#), "`expiresAt` must be a string, found a number");
    check(&with(r#""metadata":{"a":1}"#), "`metadata.a` must be a string, found a number");
    check(&with(r#""metadata":"a""#), "`metadata` must be an object of strings, found a string");
    check(
        r#"{"captureRequestId":"c","paymentId":"p","amount":{"currency":"HKD","value":12.5}}"#,
        "`amount.value` must be a string, found a number",
    );
    check(
        concat!(
            r#"{"captureRequestId":"c","paymentId":"p","#,
            r#""amount":{"currency":"HKD","currency":"HKD","value":"1"}}"#
        ),
        "`amount.currency` must stand only once",
    );
    check(
        r#"{"captureRequestId":"c","paymentId":"p","amount":{"currency":"HKD","value":"1.005"}}"#,
        "`amount`: `value` has 3 decimals, but HKD has 2: amounts are never rounded",
    );
    check(
        &with(&format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(5000))),
        "`metadata` must be at most 4096 bytes as compact JSON, found 5008",
    );
    check(&" ".repeat(70_000), "the body must be at most 65536 bytes, found 70000");
    assert_eq!(Job::parse(b"{\"a\":\"\xff\"}").unwrap_err().reason, JobError::NotUtf8(6));
}

#[test]
fn null_in_place_of_an_optional_field_is_absent() {
    let plain = Job::parse(GOOD.as_bytes()).unwrap();
    for field in ["amount", "expiresAt", "metadata", "captureType", "goods", "isLastCapture"] {
        let null = with(&format!("\"{field}\":null"));
        assert_eq!(Job::parse(null.as_bytes()).unwrap(), plain, "{field}");
        check_broken(&with(&format!("\"{field}\":null,\"{field}\":null")), field);
    }
    let major = concat!(
        r#"{"captureRequestId":"c1","paymentId":"p1","captureAmount":null,"#,
        r#""amount":{"currency":"HKD","value":"0.10"}}"#
    );
    assert_eq!(Job::parse(major.as_bytes()).unwrap(), plain);
    check(
        r#"{"captureRequestId":"c1","paymentId":"p1","captureAmount":null}"#,
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, \
         found neither",
    );
    check(&GOOD.replace("\"c1\"", "null"), "`captureRequestId` must be a string, found null");
    let malformed = Job::parse(with(r#""metadata":null,"x"#).as_bytes()).unwrap_err();
    assert_eq!(malformed.subject.metadata, None);
}

/// Checks that a repeated field is refused, whether it is one of the contract or a forwarded one.
#[track_caller]
fn check_broken(body: &str, field: &str) {
    let broken = Job::parse(body.as_bytes()).and_then(Job::complete).expect_err(body);
    assert_eq!(broken.reason.to_string(), format!("`{field}` must stand only once"));
    assert_eq!(broken.subject.capture_request_id.as_deref(), Some("c1"));
}

#[test]
fn a_byte_order_mark_before_the_json_is_no_part_of_it() {
    let marked = format!("\u{feff}{GOOD}");
    assert_eq!(Job::parse(marked.as_bytes()).unwrap(), Job::parse(GOOD.as_bytes()).unwrap());
    let wrong = format!("\u{feff}{}", GOOD.replace("\"10\"", "10"));
    let subject = Job::parse(wrong.as_bytes()).unwrap_err().subject;
    assert_eq!(subject.capture_request_id.as_deref(), Some("c1"));
    assert!(Job::parse(format!("\u{feff}\u{feff}{GOOD}").as_bytes()).is_err());
}

#[test]
fn a_compressed_body_is_named_as_such() {
    let compressed = "the body is compressed: publish it uncompressed";
    let reason = |body: &[u8], encoding| {
        Job::parse(body).unwrap_err().with_encoding(encoding).reason.to_string()
    };
    assert_eq!(reason(b"\x1f\x8b\x08\x00\x00", None), compressed);
    assert_eq!(reason(b"\x28\xb5\x2f\xfd\x24", None), compressed);
    for encoding in ["gzip", " GZIP", "deflate", "br", "zstd"] {
        assert_eq!(reason(b"\x78\x9c\xff", Some(encoding)), compressed, "{encoding}");
        assert_eq!(reason(b"brotli", Some(encoding)), compressed, "{encoding}");
        let missing = reason(b"{}", Some(encoding));
        assert_eq!(missing, "`captureRequestId` is missing", "JSON is not compressed");
    }
    for encoding in [None, Some("utf-8"), Some("identity")] {
        assert_eq!(reason(b"\xff", encoding), "the body must be UTF-8: byte 0 is not");
    }
}

#[test]
fn a_text_or_key_with_half_of_a_surrogate_pair_is_named_as_such() {
    check(
        &with(r#""metadata":{"note":"\ud800"}"#),
        "`metadata.note` must be a string, found half of a surrogate pair",
    );
    check(
        &with(r#""metadata":{"\udc00":"a"}"#),
        "`metadata` must be an object of strings, found a key with half of a surrogate pair",
    );
    check(
        &with(r#""expiresAt":"\ud800""#),
        "`expiresAt` must be a string, found half of a surrogate pair",
    );
    check(
        &GOOD.replace("\"value\"", "\"\\ud800\":1,\"value\""),
        "`captureAmount` must be an object with `currency` and `value`, \
         found a key with half of a surrogate pair",
    );
    let broken = Job::parse(with(r#""captureType":"\ud800""#).as_bytes()).unwrap();
    assert_eq!(
        broken.forward_error.unwrap().to_string(),
        "`captureType` must be \"FINAL\" or \"NON_FINAL\", found half of a surrogate pair"
    );
}

fn forwarded(fields: &str, names: &[&str]) -> Job {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let forward = ForwardFields::new(&names).unwrap();
    Job::parse_with(with(fields).as_bytes(), &forward).unwrap()
}

#[test]
fn listed_fields_are_forwarded_byte_for_byte_in_the_jobs_order() {
    let fields = concat!(
        r#""goods": [1.0e5 , "\u0041"] ,"x":1,"capture\u0054ype":"NON_F\u0049NAL","#,
        r#""isLastCapture":true"#
    );
    let job = forwarded(fields, &["captureType", "goods", "x"]);
    assert_eq!(
        job.forwarded.members(),
        r#","goods":[1.0e5 , "\u0041"],"x":1,"captureType":"NON_F\u0049NAL""#
    );
    assert_eq!(job.forwarded.capture_type(), Some(CaptureType::NonFinal));
    assert!(job.forwarded.has_goods());
    let none = forwarded(r#""captureType":"?","goods":1,"goods":2"#, &[]);
    assert_eq!((none.forwarded.members(), none.forward_error), ("", None), "not listed: ignored");
    assert_eq!(forwarded(r#""a\"b":1"#, &["a\"b"]).forwarded.members(), r#","a\"b":1"#);
    let deep = format!(r#""goods":{}1{}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(Job::parse(with(&deep).as_bytes()).unwrap().forwarded.has_goods());
}

#[test]
fn capture_type_is_one_of_two_texts() {
    let broken = |value: &str| {
        let job = Job::parse(with(&format!("\"captureType\":{value}")).as_bytes()).unwrap();
        assert_eq!(job.forwarded, Forwarded::default(), "nothing of it is sent");
        job.forward_error.map(|error| error.to_string())
    };
    let error = |found: &str| {
        Some(format!("`captureType` must be \"FINAL\" or \"NON_FINAL\", found {found}"))
    };
    assert_eq!(broken("\"final\""), error("`final`"));
    assert_eq!(broken("\"\""), error("``"));
    assert_eq!(broken("true"), error("a boolean"));
    assert_eq!(broken("[\"FINAL\"]"), error("a list"));
    for (value, capture_type) in
        [("FINAL", CaptureType::Final), ("NON_FINAL", CaptureType::NonFinal)]
    {
        let job = Job::parse(with(&format!("\"captureType\":\"{value}\"")).as_bytes()).unwrap();
        assert_eq!(job.forwarded.capture_type(), Some(capture_type));
    }
}

#[test]
fn only_the_contracts_own_names_can_not_be_forwarded() {
    let names = ["goods", "amount", "", "metadata"].map(str::to_owned);
    assert_eq!(ForwardFields::new(&names).unwrap_err(), ["amount", "", "metadata"]);
    assert!(ForwardFields::new(&["Amount".to_owned()]).is_ok());
}

#[test]
fn lengths_count_code_points() {
    let id = |id: String| GOOD.replace("c1", &id);
    assert!(Job::parse(id("é".repeat(64)).as_bytes()).is_ok());
    assert!(Job::parse(id("é".repeat(65)).as_bytes()).is_err());
}

#[test]
fn an_invalid_body_still_yields_the_fields_that_are_valid() {
    let subject = |body: &str| Job::parse(body.as_bytes()).unwrap_err().subject;
    let read = subject(&GOOD.replace("\"10\"", "10"));
    assert_eq!(read.capture_request_id.as_deref(), Some("c1"));
    assert_eq!(read.payment_id.as_deref(), Some("p1"));
    assert_eq!(read.capture_amount, None);
    assert_eq!(subject(&with(r#""captureRequestId":"c1""#)).capture_request_id, None);
    assert_eq!(subject("{\"captureRequestId\":\"c1\"").capture_request_id, None);
    let long = with(&format!(r#""x":"{}""#, "x".repeat(BODY_BYTES_MAX)));
    assert_eq!(subject(&long).capture_request_id.as_deref(), Some("c1"));
}

proptest! {
    #[test]
    fn no_body_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _checked = Job::parse(&body).is_ok();
    }

    #[test]
    fn no_change_of_one_byte_makes_the_parser_panic(at in 0..GOOD.len(), byte in any::<u8>()) {
        let mut body = GOOD.as_bytes().to_vec();
        body[at] = byte;
        if let Ok(job) = Job::parse(&body) {
            prop_assert!(job.amount.value() > 0);
        }
    }
}
