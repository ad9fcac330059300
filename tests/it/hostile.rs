//! Hostile messages: an invalid job ends as `malformed` with its reason, and the jobs around it are
//! captured.

use capture_worker::domain::capture::class::Class;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::json;
use testkit::{LIMIT, poll::eventually, raw_amqp, servers::shared_rabbit};

use crate::env::{ItEnv, headers, job, text};

/// The text of a job with these members instead of valid ones.
fn with(id: &str, payment: &str, amount: &str, more: &str) -> Vec<u8> {
    format!("{{{id},{payment},{amount}{more}}}").into_bytes()
}

const ID: &str = r#""captureRequestId":"hostile""#;
const PAYMENT: &str = r#""paymentId":"p""#;
const AMOUNT: &str = r#""captureAmount":{"currency":"HKD","value":"1"}"#;

fn hostile_bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "\0",
        "null",
        "true",
        "1",
        "\"job\"",
        "[]",
        "[{}]",
        "{}",
        "{",
        "}",
        "{\"",
        "<job/>",
        "captureRequestId=c",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    bodies.push(vec![0xff; 100]);
    bodies.push([b"\xef\xbb\xbf\xef\xbb\xbf".as_slice(), &with(ID, PAYMENT, AMOUNT, "")].concat());
    bodies.push([b"\xff\xfe".as_slice(), &with(ID, PAYMENT, AMOUNT, "")].concat());
    bodies.push([with(ID, PAYMENT, AMOUNT, "").as_slice(), b"{}"].concat());
    bodies.push([with(ID, PAYMENT, AMOUNT, "").as_slice(), b"\xc3"].concat());
    bodies.push(with(ID, PAYMENT, AMOUNT, &format!(",\"x\":\"{}\"", "x".repeat(64 * 1024))));
    bodies.push(with(ID, PAYMENT, AMOUNT, &format!(",\"x\":\"{}\"", "x".repeat(4 * 1024 * 1024))));
    bodies.push("[".repeat(60_000).into_bytes());
    bodies.extend(hostile_ids());
    bodies.extend(hostile_amounts());
    bodies.extend(hostile_extras());
    bodies
}

fn hostile_ids() -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let long = format!("\"captureRequestId\":\"{}\"", "é".repeat(65));
    for id in [
        r#""captureRequestId":"""#,
        r#""captureRequestId":1"#,
        r#""captureRequestId":null"#,
        r#""captureRequestId":["c"]"#,
        r#""captureRequestId":"a\u0000b""#,
        r#""captureRequestId":"a\u007fb""#,
        r#""captureRequestId":"a\u0085b""#,
        r#""captureRequestId":"a\ud800b""#,
        r#""captureRequestId":"c","captureRequestId":"c""#,
        r#""capturerequestid":"c""#,
        &long,
    ] {
        bodies.push(with(id, PAYMENT, AMOUNT, ""));
    }
    for payment in [
        r#""paymentId":"""#,
        r#""paymentId":20220919194010890100111740275820195"#,
        r#""paymentId":"p","paymentId":"q""#,
        r#""paymentId":"\n""#,
        r#""orderId":"p""#,
    ] {
        bodies.push(with(ID, payment, AMOUNT, ""));
    }
    bodies
}

fn hostile_amounts() -> Vec<Vec<u8>> {
    let amounts = [
        r#""captureAmount":null"#,
        r#""captureAmount":"HKD 1""#,
        r#""captureAmount":[]"#,
        r#""captureAmount":{}"#,
        r#""captureAmount":{"currency":"HKD"}"#,
        r#""captureAmount":{"value":"1"}"#,
        r#""captureAmount":{"currency":"HKD","value":1}"#,
        r#""captureAmount":{"currency":"HKD","value":"0"}"#,
        r#""captureAmount":{"currency":"HKD","value":"01"}"#,
        r#""captureAmount":{"currency":"HKD","value":"-1"}"#,
        r#""captureAmount":{"currency":"HKD","value":"1.0"}"#,
        r#""captureAmount":{"currency":"HKD","value":"1e3"}"#,
        r#""captureAmount":{"currency":"HKD","value":" 1"}"#,
        r#""captureAmount":{"currency":"HKD","value":"١"}"#,
        r#""captureAmount":{"currency":"HKD","value":"12345678901234567"}"#,
        r#""captureAmount":{"currency":"hkd","value":"1"}"#,
        r#""captureAmount":{"currency":"XAU","value":"1"}"#,
        r#""captureAmount":{"currency":"HK","value":"1"}"#,
        r#""captureAmount":{"currency":"IDR","value":"150"}"#,
        r#""captureAmount":{"currency":"HKD","value":"1","value":"2"}"#,
        r#""captureAmount":{"currency":"HKD","value":"1"},
            "captureAmount":{"currency":"HKD","value":"1"}"#,
        r#""captureAmount":{"currency":"HKD","value":"1"},
            "amount":{"currency":"HKD","value":"0.01"}"#,
        r#""amount":{"currency":"HKD","value":12.9}"#,
        r#""amount":{"currency":"HKD","value":"0"}"#,
        r#""amount":{"currency":"HKD","value":"1.234"}"#,
        r#""amount":{"currency":"HKD","value":"1."}"#,
        r#""amount":{"currency":"HKD","value":".5"}"#,
        r#""amount":{"currency":"HKD","value":"00.5"}"#,
        r#""amount":{"currency":"JPY","value":"1.0"}"#,
        r#""amount":{"currency":"HKD","value":"1,00"}"#,
        r#""amount":{"currency":"IDR","value":"1.50"}"#,
        r#""amount":{"currency":"HKD","value":"99999999999999999999999999999999"}"#,
        r#""money":{"currency":"HKD","value":"1"}"#,
    ];
    amounts.map(|amount| with(ID, PAYMENT, amount, "")).to_vec()
}

fn hostile_extras() -> Vec<Vec<u8>> {
    let big = format!(r#","metadata":{{"k":"{}"}}"#, "v".repeat(4096));
    let extras = [
        r#","expiresAt":1700000000"#,
        r#","expiresAt":"tomorrow""#,
        r#","expiresAt":"2026-13-01T00:00:00Z""#,
        r#","expiresAt":"2026-11-23 10:00""#,
        r#","metadata":[]"#,
        r#","metadata":"text""#,
        r#","metadata":{"n":1}"#,
        r#","metadata":{"n":{"m":"o"}}"#,
        r#","metadata":{"n":null}"#,
        r#","captureType":"final""#,
        r#","captureType":true"#,
        r#","captureType":"FINAL","captureType":"FINAL""#,
        r#","goods":null,"goods":[]"#,
        &big,
    ];
    extras.map(|more| with(ID, PAYMENT, AMOUNT, more)).to_vec()
}

/// Header tables that may break a parser, a republish or a counter.
fn hostile_headers() -> Vec<FieldTable> {
    let long = |length: usize| text(&"h".repeat(length));
    let mut nested = FieldTable::default();
    for _ in 0..60 {
        nested = headers([("deeper", AMQPValue::FieldTable(nested))]);
    }
    let mut many = FieldTable::default();
    for n in 0..1000 {
        many.insert(ShortString::from(format!("h{n}")), AMQPValue::LongInt(n));
    }
    let ours = [
        "x-capture-attempt",
        "x-capture-deferrals",
        "x-capture-first-seen",
        "x-capture-last-code",
        "x-capture-last-status",
        "x-capture-sent",
        "x-capture-replays",
        "x-capture-parent",
        "x-capture-origin",
        "x-capture-class",
        "x-capture-signed",
        "x-capture-dead-at",
        "x-capture-message",
    ];
    let all_ours = |value: AMQPValue| {
        let mut table = FieldTable::default();
        for name in ours {
            table.insert(name.into(), value.clone());
        }
        table
    };
    let values = vec![AMQPValue::Void, AMQPValue::Float(1.5), AMQPValue::Timestamp(u64::MAX)];
    vec![
        FieldTable::default(),
        nested,
        many,
        headers([("big", long(100_000))]),
        headers([("x-capture-parent", long(50_000)), ("x-capture-origin", long(50_000))]),
        all_ours(AMQPValue::Void),
        all_ours(AMQPValue::LongLongInt(i64::MIN)),
        all_ours(AMQPValue::Double(f64::MAX)),
        all_ours(text("\u{0}\u{202e}<script>")),
        all_ours(AMQPValue::FieldArray(FieldArray::from(values))),
        headers([
            ("x-match", text("all")),
            ("x-delay", AMQPValue::LongInt(-1)),
            ("", text("no name")),
        ]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_jobs_end_malformed_and_valid_jobs_between_are_captured() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    let bodies = hostile_bodies();
    assert!(bodies.len() >= 60);
    let tables = hostile_headers();
    for (n, (body, table)) in bodies.iter().zip(tables.iter().cycle()).enumerate() {
        env.publish_with(body, table.clone()).await;
        if n % 4 == 0 {
            // A valid job with the same headers. Impossible values in the worker's own headers
            // count as absent.
            let table = if n % 8 == 0 { table.clone() } else { FieldTable::default() };
            env.publish_with(&job(&format!("good-{n}"), &format!("good-{n}"), 100), table).await;
        }
    }
    let dead_letters = env.dead(Class::Malformed, u32::try_from(bodies.len()).unwrap()).await;
    let mut left = bodies.clone();
    for dead_letter in &dead_letters {
        let at =
            left.iter().position(|body| *body == dead_letter.body).expect("the unchanged body");
        left.swap_remove(at);
        let reason = dead_letter.header("x-capture-message").unwrap_or_default();
        assert!(reason.len() > 10, "{reason}");
        assert_eq!(dead_letter.header("x-capture-class").as_deref(), Some("malformed"));
        assert_eq!(dead_letter.header("x-capture-signed").as_deref(), Some("false"));
    }
    for n in (0..bodies.len()).step_by(4) {
        let id = format!("good-{n}");
        env.ends_as(&id, "CAPTURED", None).await;
        assert_eq!(env.captures_of(&id), 1);
    }
    // A job whose id is valid and occurs once has a result, even without an amount.
    let results = env.results_now("hostile");
    assert!(results.len() > 40, "{}", results.len());
    for result in results {
        let found = (result["status"].as_str(), result["class"].as_str());
        assert_eq!(found, (Some("FAILED"), Some("malformed")));
    }
    assert!(env.results_now("c").is_empty(), "an id that occurs twice is not used");
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    assert_eq!(worker.process.stderr().matches("panicked").count(), 0);
}

/// RabbitMQ accepts header names that are not UTF-8. The client library does not, and closes its
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_client_cannot_read_ends_as_poison_alone() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    for n in 0..30 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        if n == 10 {
            let table = raw_amqp::entry(b"\xff\xfe", b"x");
            let exchange = format!("{}.jobs", env.prefix);
            raw_amqp::publish(rabbit.port(), &exchange, &table, &job("bad", "bad", 100)).unwrap();
        }
    }
    for n in 0..30 {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    let queue = format!("{}.dead.poison", env.prefix);
    eventually("the message is a dead letter of class poison", LIMIT, async || {
        env.broker.queue_depth(&queue).await.unwrap() == Some(1)
    })
    .await;
    assert_eq!(env.queued().await, [("dead.poison".to_owned(), 1)].into());
    worker.becomes_ready().await.unwrap();
    env.publish(&job("after", "p", 100)).await;
    env.ends_as("after", "CAPTURED", None).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_trace_headers_do_not_prevent_the_result() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    env.publish_with(&job("c", "p", 100), headers([("tracestate", text(&"x".repeat(120_000)))]))
        .await;
    env.ends_as("c", "CAPTURED", None).await;
    let metadata = r#"{"$serde_json::private::RawValue":"{\"evil\":\"1\"}"}"#;
    let odd = String::from_utf8(job("odd", "p", 100)).unwrap();
    let odd = odd.replacen('{', &format!("{{\"metadata\":{metadata},"), 1);
    env.publish(odd.as_bytes()).await;
    env.ends_as("odd", "CAPTURED", None).await;
    let bodies =
        env.results.all().into_iter().map(|result| String::from_utf8(result.body).unwrap());
    let results = bodies.filter(|body| body.contains(&format!("\"metadata\":{metadata}")));
    assert_eq!(results.count(), 1, "the metadata is unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_returned_too_often_is_poison_before_it_begins() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let returned = headers([("x-capture-returns", AMQPValue::LongInt(20))]);
    env.publish_with(&job("c", "p", 100), returned).await;
    let result = env.ends_as("c", "IN_DOUBT", Some("poison")).await;
    assert_eq!(result["attempts"], json!(0));
    env.dead(Class::Poison, 1).await;
    assert_eq!(env.posts("p", "c"), 0);
    let nearly = headers([("x-capture-returns", AMQPValue::LongInt(19))]);
    env.publish_with(&job("d", "p", 100), nearly).await;
    env.ends_as("d", "CAPTURED", None).await;
}
