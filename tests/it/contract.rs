//! The message contract for publishers, `docs/asyncapi.json`: its examples are run, and its schemas
//! agree with the program.

use std::fs;

use capture_worker::domain::{capture::class::Class, job::Job};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::env::{ItEnv, job};

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/asyncapi.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the document")).expect("JSON")
}

/// A schema of the document, with the schemas that it refers to.
fn schema(name: &str) -> Validator {
    let schemas = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{name}"),
        "components": document()["components"],
    });
    jsonschema::options().should_validate_formats(true).build(&schemas).expect("a schema")
}

fn examples(message: &str) -> Vec<Value> {
    let examples = document()["components"]["messages"][message]["examples"].take();
    let examples = examples.as_array().cloned().expect("examples");
    examples.into_iter().map(|mut example| example["payload"].take()).collect()
}

#[test]
fn schema_and_program_accept_and_refuse_the_same_jobs() {
    let schema = schema("job");
    let mut bad = vec![json!([]), json!("job"), json!({})];
    let change = |field: &str, value: Value| {
        let mut body = json!({
            "captureRequestId": "c", "paymentId": "p",
            "captureAmount": {"currency": "HKD", "value": "1"},
        });
        body[field] = value;
        body
    };
    for (field, values) in [
        ("captureRequestId", vec![json!(""), json!(7), json!("x".repeat(65)), json!("a\u{85}b")]),
        ("paymentId", vec![json!(null), json!("a\nb"), json!("é".repeat(65))]),
        (
            "captureAmount",
            vec![
                json!("1"),
                json!({"currency": "HKD"}),
                json!({"currency": "hkd", "value": "1"}),
                json!({"currency": "HKD", "value": 1}),
                json!({"currency": "HKD", "value": "0"}),
                json!({"currency": "HKD", "value": "01"}),
                json!({"currency": "HKD", "value": "1.0"}),
                json!({"currency": "HKD", "value": "12345678901234567"}),
            ],
        ),
        ("amount", vec![json!({"currency": "HKD", "value": "1"})]),
        ("captureType", vec![json!("final"), json!(""), json!(true), json!(["FINAL"])]),
        ("expiresAt", vec![json!("tomorrow"), json!(1)]),
        ("metadata", vec![json!({"a": 1}), json!("text"), json!(["a"])]),
    ] {
        bad.extend(values.into_iter().map(|value| change(field, value)));
    }
    bad.push(json!({"captureRequestId": "c", "paymentId": "p", "captureAmount": null}));
    bad.push(
        json!({"captureRequestId": "c", "paymentId": "p", "captureAmount": null, "amount": null}),
    );
    let mut good = examples("job");
    good.push(change("captureRequestId", json!("é".repeat(64))));
    for field in ["amount", "expiresAt", "metadata", "captureType", "goods", "transit"] {
        good.push(change(field, json!(null)));
    }
    for field in ["isLastCapture", "transit", "goods", "shippings"] {
        good.extend(
            [json!(1), json!("x"), json!([{}]), json!(false)].map(|any| change(field, any)),
        );
    }
    good.extend(["FINAL", "NON_FINAL"].map(|text| change("captureType", json!(text))));
    let taken = |body: &Value| Job::parse(body.to_string().as_bytes()).and_then(Job::complete);
    for body in &good {
        assert!(schema.is_valid(body), "{body}");
        assert!(taken(body).is_ok(), "{body}");
    }
    for body in &bad {
        assert!(!schema.is_valid(body), "{body}");
        assert!(taken(body).is_err(), "{body}");
    }
}

#[test]
fn the_classes_of_the_document_are_those_of_the_program() {
    let classes: Vec<Value> = Class::ALL.iter().map(|class| json!(class.name())).collect();
    assert_eq!(document()["components"]["schemas"]["class"]["enum"], json!(classes));
    let schema = schema("result");
    for example in examples("result") {
        assert!(schema.is_valid(&example), "{example}");
    }
}

/// A worker captures the examples, and all its results match the document's schema.
#[tokio::test(flavor = "multi_thread")]
async fn the_examples_are_captured_and_results_match_the_schema() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let examples = examples("job");
    for example in &examples {
        // The document's `expiresAt` is a fixed time, so it is replaced.
        let mut example = example.clone();
        if example["expiresAt"].is_string() {
            example["expiresAt"] = json!("2099-12-01T18:00:00Z");
        }
        env.publish(example.to_string().as_bytes()).await;
    }
    for (id, payment) in [("r", "sim-RISK_REJECT-1"), ("d", "sim-unknown-for-ever-1")] {
        env.publish(&job(id, payment, 100)).await;
    }
    env.publish(br#"{"captureRequestId":"m"}"#).await;
    for example in &examples {
        let id = example["captureRequestId"].as_str().expect("an id");
        env.ends_as(id, "CAPTURED", None).await;
    }
    env.ends_as("r", "FAILED", Some("risk")).await;
    env.ends_as("d", "IN_DOUBT", Some("in_doubt")).await;
    env.ends_as("m", "FAILED", Some("malformed")).await;
    let schema = schema("result");
    for result in env.results.all() {
        let result = result.json().expect("JSON");
        let errors: Vec<String> =
            schema.iter_errors(&result).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {result}");
    }
}
