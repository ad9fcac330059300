use super::{load::known_keys, *};

fn load(env: &[(&str, &str)]) -> Result<Settings, SettingsErrors> {
    Settings::load(None, env.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn load_file(text: &str) -> Result<Settings, SettingsErrors> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, text).unwrap();
    Settings::load(Some(&file), [])
}

#[track_caller]
fn check_errors(env: &[(&str, &str)], expected: &[&str]) {
    let errors = load(env).unwrap_err().to_string();
    for text in expected {
        assert!(errors.contains(text), "no `{text}` in:\n{errors}");
    }
}

#[test]
fn the_defaults_are_the_contracts() {
    let described: Vec<_> = load(&[])
        .unwrap()
        .describe()
        .into_iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    insta::assert_snapshot!(described.join("\n"), @r"
    broker.url = amqp://127.0.0.1:5672/%2f
    broker.prefix = capture
    broker.prefetch = 64
    broker.topology = declare
    broker.ca_file = none
    broker.client_cert_file = none
    broker.client_key_file = none
    redis.url = redis://127.0.0.1:6379
    redis.ca_file = none
    redis.client_cert_file = none
    redis.client_key_file = none
    gateway.base_url = none
    gateway.capture_path = /ams/api/v1/payments/capture
    gateway.inquiry_path = /ams/api/v1/payments/inquiryPayment
    gateway.client_id = none
    gateway.key_version = 1
    gateway.private_key = none
    gateway.public_key = 0 keys
    gateway.agent_token = none
    gateway.timeout = 8s
    gateway.inquiry_timeout = 5s
    gateway.rate_limit = none
    lease.ttl = 30s
    lease.hold_in_doubt = 10m
    lease.remember = 7d
    retry.schedule = 5s, 15s, 1m, 5m, 15m, 1h, 3h, 6h
    retry.defer_schedule = 250ms, 1s, 4s, 15s
    retry.max_age = 1d
    breaker.failures = 5
    breaker.pause = 1s
    breaker.max_pause = 1m
    http.listen = 127.0.0.1:9090
    drain.timeout = 20s
    log.format = none
    log.filter = info
    traces.endpoint = none
    ");
}

#[test]
fn every_key_is_documented() {
    let known = known_keys();
    for (key, _) in load(&[]).unwrap().describe() {
        assert!(known.contains(&key), "{key} is not in config/default.toml");
    }
}

#[test]
fn string_keys_stay_strings() {
    for text in ["0123", "true", "1e5", "123456789012345678901234567890"] {
        let settings = load(&[("CAPTURE__GATEWAY__CLIENT_ID", text)]).unwrap();
        assert_eq!(settings.gateway.client_id.as_deref(), Some(text));
    }
}

#[test]
fn lists_in_the_environment_are_split_at_commas() {
    let settings =
        load(&[("CAPTURE__RETRY__SCHEDULE", "1s, 2s,3m"), ("CAPTURE__GATEWAY__PUBLIC_KEY", "a,b")])
            .unwrap();
    let seconds: Vec<_> = settings.retry.schedule.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [1, 2, 180]);
    assert_eq!(settings.gateway.public_key, ["a", "b"]);
}

/// Durations that older versions took, or that overflow.
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

/// As the README's table prints the default, and as `check` prints it.
#[test]
fn lists_of_durations_are_split_at_commas_or_blanks() {
    let schedule = |text| load(&[("CAPTURE__RETRY__SCHEDULE", text)]).unwrap().retry.schedule;
    let seconds = [5, 15, 60, 300].map(Duration::from_secs);
    for text in
        ["5s 15s 1m 5m", "5s,15s,1m,5m", "5s, 15s ,1m\t5m", " 5s\n15s\n1m\n5m\n", "5s,,15s, 1m,5m,"]
    {
        assert_eq!(schedule(text), seconds, "{text}");
    }
    let shown = |settings: &Settings| {
        let described = settings.describe().into_iter().collect::<BTreeMap<_, _>>();
        described["retry.defer_schedule"].clone()
    };
    let printed = shown(&load(&[]).unwrap());
    let read = load(&[("CAPTURE__RETRY__DEFER_SCHEDULE", &printed)]).unwrap();
    assert_eq!(shown(&read), printed);
    let file = load_file("[retry]\nschedule = [\"5s 15s\"]\n").unwrap_err().to_string();
    assert!(file.contains("retry.schedule: must be a duration"), "{file}");
    // Keys hold blanks and line feeds of their own.
    let keys = load(&[("CAPTURE__GATEWAY__PUBLIC_KEY", "MII A\nB,MIIC")]).unwrap();
    assert_eq!(keys.gateway.public_key, ["MII A\nB", "MIIC"]);
}

#[test]
fn numbers_are_digits_and_in_their_range() {
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

/// Values that can't be read, unknown keys, relations, files, codes, a missing half of a pair: one start tells all.
#[test]
fn errors_of_all_kinds_are_told_at_once() {
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
            "lease.ttl: must be a duration such as \"5s\" (one number and one unit of ms, s, m, h, d), \
             found `soon` (CAPTURE__LEASE__TTL)",
            "breaker.pause: must be a duration",
            "broker.prefetch: must be a whole number",
            "broker.topology: must be \"declare\", \"check\" or \"none\", found `guess`",
            "http.listen: must be an address and a port such as \"127.0.0.1:9090\", found `9090`",
            "log.format: must be \"json\" or \"text\"",
            "broker.prefech: there is no such key (CAPTURE__BROKER__PREFECH)",
            "CAPTURE__CLASSES__X: [classes] comes from a settings file only",
            "broker: there is no such key (CAPTURE__BROKER)",
            "drain.timeout must be at least 9s",
            "redis.url_file /nowhere: ",
            "redis.client_cert_file and redis.client_key_file go together",
        ],
    );
    let file = "gateway = \"x\"\n[lease]\nttl = [\"5s\"]\n[classes]\nNEW = \"sometimes\"\n[retry]\nmax_age = \"1s\"\n";
    let errors = load_file(file).unwrap_err().to_string();
    for text in ["gateway: ", "lease.ttl: ", "classes.NEW: ", "retry.max_age must be at least 5s"] {
        assert!(errors.contains(text), "no `{text}` in:\n{errors}");
    }
}

/// A relation is not judged by the default that stands in for a value that can't be read.
#[test]
fn a_value_that_cannot_be_read_is_told_once() {
    let env = [
        ("CAPTURE__LEASE__TTL", "soon"),
        ("CAPTURE__GATEWAY__TIMEOUT", "40s"),
        ("CAPTURE__DRAIN__TIMEOUT", "60s"),
    ];
    let errors = load(&env).unwrap_err().to_string();
    assert_eq!(errors.matches("lease.ttl").count(), 1, "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

/// The broken line may be the private key's, and the value of a setting may be one that was meant for another.
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
fn a_syntax_error_is_told_by_line_and_column() {
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
fn only_loopback_is_spared_the_warning_about_clear_text() {
    let warns = |url: &str| {
        let warnings = load(&[("CAPTURE__GATEWAY__BASE_URL", url)]).unwrap().warnings();
        warnings.iter().any(|warning| warning.contains("clear text"))
    };
    for url in [
        "http://localhost",
        "http://localhost:8080/x",
        "http://LOCALHOST",
        "http://localhost.",
        "http://127.0.0.1:1",
        "http://127.8.9.1",
        "http://[::1]:8080",
        "http://[::ffff:127.0.0.1]",
        "https://localhost.evil.example",
    ] {
        assert!(!warns(url), "{url}");
    }
    for url in [
        "http://localhost.evil.example",
        "http://localhostess",
        "http://127.evil.example",
        "http://127.0.0.1.evil.example",
        "http://[::1:2]",
        "http://10.0.0.1",
        "http://gateway.example/127.0.0.1",
    ] {
        assert!(warns(url), "{url}");
    }
}

#[test]
fn the_environment_overrides_the_file_and_the_file_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[broker]\nprefetch = 7\nprefix = \"p\"\n").unwrap();
    let env = [("CAPTURE__BROKER__PREFETCH".to_owned(), "9".to_owned())];
    let settings = Settings::load(Some(&file), env).unwrap();
    assert_eq!((settings.broker.prefetch, settings.broker.prefix.as_str()), (9, "p"));
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let env = [("CAPTURE__GATEWAY__CLIENT_ID", ""), ("CAPTURE__BROKER__PREFIX", "")];
    assert_eq!(load(&env).unwrap().broker.prefix, "capture");
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
fn relations_that_cannot_be_safe_are_told_all_at_once() {
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
            "retry.schedule must not grow shorter",
            "retry.defer_schedule: a delay must be whole milliseconds",
            "retry.max_age must be at least 10s (the first delay of retry.schedule), found 1s",
            "broker.prefetch must be at least 1",
            "lease.remember must be at least 1s (retry.max_age)",
            "breaker.max_pause must be at least 1s",
            "broker.client_cert_file and broker.client_key_file go together",
            "gateway.base_url must be http:// or https://",
        ],
    );
    check_errors(&[("CAPTURE__RETRY__SCHEDULE", ",")], &["retry.schedule must hold at least one"]);
}

#[test]
fn classes_come_from_files_only_and_map_new_codes_only() {
    let settings = load_file("[classes]\nCARD_FROZEN = \"payer\"\n").unwrap();
    assert_eq!(settings.classes.class_of("CARD_FROZEN"), crate::domain::class::Class::Payer);
    check_errors(&[("CAPTURE__CLASSES__X", "payer")], &["from a settings file only"]);
    for text in ["RISK_REJECT = \"payer\"", "NEW = \"access\"", "NEW = \"sometimes\""] {
        assert!(load_file(&format!("[classes]\n{text}\n")).is_err(), "{text}");
    }
}

#[test]
fn secrets_are_read_from_files_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let env = [
        ("CAPTURE__BROKER__URL_FILE", file("url", "amqps://u:hush@rabbit:5671/%2f\n")),
        ("CAPTURE__REDIS__URL", "redis://:hush@redis:6379".to_owned()),
        ("CAPTURE__GATEWAY__PRIVATE_KEY_FILE", file("key", "hush\n")),
        ("CAPTURE__GATEWAY__AGENT_TOKEN", "hush".to_owned()),
    ];
    let settings = Settings::load(None, env.map(|(name, value)| (name.to_owned(), value))).unwrap();
    assert_eq!(settings.broker.url.expose_secret(), "amqps://u:hush@rabbit:5671/%2f");
    assert_eq!(settings.gateway.private_key.as_ref().unwrap().expose_secret(), "hush");
    let shown = format!("{settings:?} {:?}", settings.describe());
    assert!(!shown.contains("hush"), "{shown}");
    assert!(shown.contains("amqps://rabbit:5671/%2f"), "{shown}");
    check_errors(&[("CAPTURE__REDIS__URL_FILE", "/nowhere")], &["redis.url_file /nowhere: "]);
    let bad_url = load(&[("CAPTURE__BROKER__URL", "http://u:hush@h")]).unwrap_err().to_string();
    assert!(bad_url.contains("broker.url") && !bad_url.contains("hush"), "{bad_url}");
}

#[test]
fn what_the_gateway_needs_is_asked_for_all_at_once() {
    let errors = load(&[]).unwrap().require_gateway().unwrap_err().to_string();
    for key in ["BASE_URL", "CLIENT_ID", "PRIVATE_KEY", "PUBLIC_KEY"] {
        assert!(errors.contains(&format!("CAPTURE__GATEWAY__{key}")), "{errors}");
    }
}

#[test]
fn what_is_most_often_a_mistake_is_warned_about() {
    let warnings = |url, id| {
        let env = [("CAPTURE__GATEWAY__BASE_URL", url), ("CAPTURE__GATEWAY__CLIENT_ID", id)];
        load(&env).unwrap().warnings().len()
    };
    assert_eq!(warnings("https://gateway.example", "5X"), 0);
    assert_eq!(warnings("http://127.0.0.1:1", "5X"), 0);
    assert_eq!(warnings("http://gateway.example", "5X"), 1);
    assert_eq!(warnings("https://gateway.example", "SANDBOX_5X"), 2);
}
