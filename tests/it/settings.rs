//! The settings of the real program: what it refuses, and which errors it prints.

use std::fs;

use testkit::{guardian::folder, processes::worker_command};

use crate::commands::run;

/// Runs the program with only these settings in its environment, and returns exit code and all
/// output.
async fn run_with(arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut program = worker_command(arguments);
    for (name, value) in settings {
        program.env(name, value);
    }
    let (code, output, errors) = run(program).await;
    (code, output + &errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_capture_config_counts_as_absent() {
    let (code, said) = run_with(&["run"], &[("CAPTURE_CONFIG", "")]).await;
    assert_eq!(code, Some(64));
    assert!(said.contains("gateway.base_url is missing") && !said.contains("--config"), "{said}");
    // With the flag, an empty name is a file that does not exist.
    let (code, said) = run_with(&["run", "--config", ""], &[]).await;
    assert_eq!(code, Some(64));
    assert!(said.contains("No such file"), "{said}");
    let folder = folder().unwrap();
    let file = folder.path().join("settings.toml");
    fs::write(&file, "[gateway]\nclient_id = \"5X\"\n").unwrap();
    let (_, said) = run_with(&["run"], &[("CAPTURE_CONFIG", file.to_str().unwrap())]).await;
    assert!(!said.contains("gateway.client_id"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_start_reports_bad_values_relations_and_missing_keys() {
    let settings = [
        ("CAPTURE__LEASE__TTL", "soon"),
        ("CAPTURE__DRAIN__TIMEOUT", "1s"),
        ("CAPTURE__GATEWAY__PRIVATE_KEY", "$$$"),
        ("CAPTURE__BROKER__CA_FILE", "/nowhere/ca.pem"),
        ("CAPTURE__NOWHERE__X", "1"),
    ];
    for arguments in [["run"].as_slice(), &["check"], &["dead", "replay", "--all"]] {
        let (code, said) = run_with(arguments, &settings).await;
        assert_eq!(code, Some(64), "{said}");
        for text in [
            "lease.ttl: must be a duration",
            "drain.timeout must be at least 9s",
            "gateway.private_key: ",
            "gateway.base_url is missing",
            "gateway.public_key is missing",
            "broker.ca_file /nowhere/ca.pem: ",
            "nowhere.x: there is no such key",
        ] {
            assert_eq!(said.matches(text).count(), 1, "{arguments:?}: {text} in {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durations_on_the_command_line_are_one_number_and_one_unit() {
    for arguments in [
        ["dead", "list", "--older-than", "1h 30m"].as_slice(),
        &["dead", "replay", "--newer-than", "10M"],
        &["audit", "--older-than", "2days"],
        &["audit", "--newer-than", "99999999999999999999d"],
        &["sandbox", "--latency", "1month"],
    ] {
        let (code, said) = run_with(arguments, &[]).await;
        assert_eq!(code, Some(64), "{arguments:?}: {said}");
        assert!(said.contains("must be a duration such as \"5s\""), "{arguments:?}: {said}");
    }
    let (code, said) = run_with(&["dead", "replay", "--all", "--rate", "10 /s"], &[]).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("must be a rate"), "{said}");
}
