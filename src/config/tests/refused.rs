//! Settings that are refused, and the texts of the errors.

use super::*;

/// Older versions accepted some of these durations; others overflow.
#[test]
fn a_duration_is_one_number_and_one_unit() {
    for text in [
        "5s 15s",
        "1h30m",
        "1h 30m",
        "10M",
        "1y",
        "1month",
        "1day",
        "5sec",
        "1.5s",
        "5",
        "s",
        "-5s",
        "+5s",
        " 5s",
        "5 s",
        "5S",
        "5us",
        "5s;15s",
        "[5s]",
        "\u{665}s",
        "18446744073709551616ms",
        "18446744073709551615d",
        "99999999999999999999999999d",
    ] {
        check_errors(&[("CAPTURE__LEASE__TTL", text)], &["lease.ttl: must be a duration such as"]);
    }
    for (text, ms) in [("9000ms", 9000), ("20s", 20_000), ("1m", 60_000), ("0002h", 7_200_000)] {
        let ttl = load(&[("CAPTURE__LEASE__TTL", text)]).unwrap().lease.ttl;
        assert_eq!(ttl, Duration::from_millis(ms), "{text}");
    }
}

#[test]
fn numbers_consist_of_digits_and_are_in_range() {
    for text in ["yes", "true", "0.6", "64.0", "65536", "-1", "+1", "1e2", "", " 1"] {
        let loaded = load_file(&format!("[broker]\nprefetch = \"{text}\"\n"));
        let errors = loaded.unwrap_err().to_string();
        assert!(errors.contains("broker.prefetch: must be a whole number"), "{text}: {errors}");
    }
    for text in ["0/s", "100 / s", "+100/s", "100/h", "4294967296/s"] {
        check_errors(
            &[("CAPTURE__GATEWAY__RATE_LIMIT", text)],
            &["gateway.rate_limit: must be a rate"],
        );
    }
}

/// Values that can't be read, unknown keys, relations, files, codes, half of a pair: one start
/// reports them all.
#[test]
fn errors_of_all_kinds_are_reported_at_once() {
    check_errors(
        &[
            ("CAPTURE__LEASE__TTL", "soon"),
            ("CAPTURE__BREAKER__PAUSE", "later"),
            ("CAPTURE__BROKER__PREFETCH", "many"),
            ("CAPTURE__BROKER__TOPOLOGY", "guess"),
            ("CAPTURE__HTTP__LISTEN", "9090"),
            ("CAPTURE__LOG__FORMAT", "xml"),
            ("CAPTURE__BROKER__PREFECH", "1"),
            ("CAPTURE__CLASSES__X", "payer"),
            ("CAPTURE__BROKER", "1"),
            ("CAPTURE__DRAIN__TIMEOUT", "8s"),
            ("CAPTURE__REDIS__URL_FILE", "/nowhere"),
            ("CAPTURE__REDIS__CLIENT_KEY_FILE", "/k"),
        ],
        &[
            "lease.ttl: must be a duration such as \"5s\" (one number and one unit of \
             ms, s, m, h, d), found `soon` (CAPTURE__LEASE__TTL)",
            "breaker.pause: must be a duration",
            "broker.prefetch: must be a whole number",
            "broker.topology: must be \"declare\", \"check\" or \"none\", found `guess`",
            "http.listen: must be an address and a port such as \"127.0.0.1:9090\", found `9090`",
            "log.format: must be \"json\" or \"text\"",
            "broker.prefech: there is no such key (CAPTURE__BROKER__PREFECH)",
            "CAPTURE__CLASSES__X: [classes] can be set in a settings file only",
            "broker: there is no such key (CAPTURE__BROKER)",
            "drain.timeout must be at least 9s",
            "redis.url_file /nowhere: ",
            "redis.client_cert_file and redis.client_key_file must be set together",
        ],
    );
    let file = "gateway = \"x\"\n[lease]\nttl = [\"5s\"]\n[classes]\nNEW = \"sometimes\"\n\
                [retry]\nmax_age = \"1s\"\n";
    let errors = load_file(file).unwrap_err().to_string();
    for text in ["gateway: ", "lease.ttl: ", "classes.NEW: ", "retry.max_age must be at least 5s"] {
        assert!(errors.contains(text), "no `{text}` in:\n{errors}");
    }
}

/// A value that can't be read causes no second error about the default that replaces it.
#[test]
fn a_value_that_cannot_be_read_is_reported_once() {
    let env = [
        ("CAPTURE__LEASE__TTL", "soon"),
        ("CAPTURE__GATEWAY__TIMEOUT", "40s"),
        ("CAPTURE__DRAIN__TIMEOUT", "60s"),
    ];
    let errors = load(&env).unwrap_err().to_string();
    assert_eq!(errors.matches("lease.ttl").count(), 1, "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

/// A line with a syntax error may contain the private key, and a secret may be set under the wrong
/// key.
#[test]
fn no_error_prints_what_may_be_a_secret() {
    let key = format!("MIIhush{}", "x".repeat(80));
    for text in [
        format!("[gateway]\nprivate_key = {key}\n"),
        format!("[gateway]\nprivate_key = \"{key}\n"),
        format!("[gateway]\nprivate_key = \"\"\"{key}\n"),
        format!("[gateway]\n{key}\n"),
        format!("[gateway]\n{key} = 1\n{key} = 1\n"),
        format!("[gateway\nprivate_key = \"{key}\"\n"),
        format!("gateway = \"{key}\"\n"),
        format!("[gateway]\nprivate_key = [\"{key}\"]\n"),
        format!("[gateway]\nprivate_key = {{ {key} = \"{key}\" }}\n"),
        format!("[gateway]\n\"{key}\" = 1\n"),
        format!("[gateway]\nprivate_key_file = \"{key}\"\n"),
        format!("[gateway]\ntimeout = \"{key}\"\n"),
        format!("[gateway]\nkey_version = \"{key}\"\n"),
        format!("[gateway]\nrate_limit = \"{key}\"\n"),
        "[broker]\nurl = [\"amqp://u:hush@h\"]\n".to_owned(),
        "[broker]\nurl = \"amqp://u:hush/@h:x\"\n".to_owned(),
        "[broker]\nurl = \"amqp://u:5/hush@h/\"\n".to_owned(),
        "[redis]\nurl = \"redis://:hu#hush@h:6379\"\n".to_owned(),
        "[redis]\nurl = \"redis://u:5/hush@h:6379\"\n".to_owned(),
        "[broker]\nurl_file = \"amqp://u:hush@h\"\n".to_owned(),
        "[broker]\ntopology = \"amqp://u:hush@h\"\n".to_owned(),
        "[http]\nlisten = \"redis://:hush@h\"\n".to_owned(),
        "[gateway]\nbase_url = \"https://u:hush@h\"\n".to_owned(),
        "[gateway]\nbase_url = \"https://h:hush\"\n".to_owned(),
        "[gateway]\ncapture_path = \"https://u:hush@h\"\n".to_owned(),
        "[traces]\nendpoint = \"http://u:hush@h\"\n".to_owned(),
    ] {
        let errors = load_file(&text).expect_err(&text).to_string();
        assert!(!errors.contains("hush") && !errors.contains("xxxx"), "{text}\n{errors}");
    }
}

#[test]
fn a_syntax_error_is_reported_by_line_and_column() {
    let errors = load_file("[gateway]\nclient_id = 5X\n").unwrap_err().to_string();
    assert!(errors.contains("settings.toml: line 2, column 13: "), "{errors}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[gateway]\nclient_id = 5X\n").unwrap();
    let env = [("CAPTURE__LEASE__TTL".to_owned(), "soon".to_owned())];
    let errors = Settings::load(Some(&file), env).unwrap_err().to_string();
    assert!(errors.contains("line 2") && errors.contains("lease.ttl"), "{errors}");
}

#[test]
fn unknown_keys_are_errors_that_name_them_all() {
    check_errors(
        &[("CAPTURE__BROKER__PREFECH", "1"), ("CAPTURE__NOWHERE__X", "1")],
        &["broker.prefech: there is no such key (CAPTURE__BROKER__PREFECH)", "nowhere.x"],
    );
    let errors = load_file("[lease]\nttll = \"5s\"\n[new]\nkey = 1\n").unwrap_err().to_string();
    assert!(errors.contains("lease.ttll") && errors.contains("new.key"), "{errors}");
}

#[test]
fn a_value_of_another_type_names_its_key() {
    check_errors(&[("CAPTURE__BROKER__PREFETCH", "many")], &["broker.prefetch"]);
    check_errors(&[("CAPTURE__LEASE__TTL", "soon")], &["lease.ttl", "soon"]);
    check_errors(&[("CAPTURE__GATEWAY__RATE_LIMIT", "fast")], &["rate_limit", "100/s"]);
}

#[test]
fn relations_that_cannot_be_safe_are_reported_at_once() {
    check_errors(
        &[
            ("CAPTURE__LEASE__TTL", "5s"),
            ("CAPTURE__DRAIN__TIMEOUT", "8s"),
            ("CAPTURE__RETRY__SCHEDULE", "10s,5s"),
            ("CAPTURE__RETRY__DEFER_SCHEDULE", "0ms"),
            ("CAPTURE__RETRY__MAX_AGE", "1s"),
            ("CAPTURE__BROKER__PREFETCH", "0"),
            ("CAPTURE__LEASE__REMEMBER", "500ms"),
            ("CAPTURE__BREAKER__MAX_PAUSE", "1ms"),
            ("CAPTURE__BROKER__CLIENT_KEY_FILE", "/k"),
            ("CAPTURE__GATEWAY__BASE_URL", "ftp://x"),
        ],
        &[
            "lease.ttl must be at least 9s (gateway.timeout + 1s), found 5s",
            "lease.ttl must be at least 6s (gateway.inquiry_timeout + 1s), found 5s",
            "drain.timeout must be at least 9s",
            "retry.schedule: no delay may be shorter than the one before it",
            "retry.defer_schedule: a delay must be a whole number of milliseconds",
            "retry.max_age must be at least 10s (the first delay of retry.schedule), found 1s",
            "broker.prefetch must be at least 1",
            "lease.remember must be at least 1s (retry.max_age)",
            "breaker.max_pause must be at least 1s",
            "broker.client_cert_file and broker.client_key_file must be set together",
            "gateway.base_url must be http:// or https://",
        ],
    );
    check_errors(&[("CAPTURE__RETRY__SCHEDULE", ",")], &["retry.schedule must have at least one"]);
}
