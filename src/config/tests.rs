mod refused;

use std::{collections::BTreeMap, time::Duration};

use secrecy::ExposeSecret;

use super::{load::known_keys, *};
use crate::domain::job::forward::ForwardFields;

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
fn the_defaults_are_those_of_the_contract() {
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
    redis.sentinel_username = none
    redis.sentinel_password = none
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
    gateway.forward_fields = captureType, isLastCapture, transit, goods, shippings
    gateway.agent_token = none
    gateway.timeout = 8s
    gateway.inquiry_timeout = 5s
    gateway.proxy = none
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

/// Users paste a list in the form that documents and `check` print.
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
    // A key may contain blanks and line feeds.
    let keys = load(&[("CAPTURE__GATEWAY__PUBLIC_KEY", "MII A\nB,MIIC")]).unwrap();
    assert_eq!(keys.gateway.public_key, ["MII A\nB", "MIIC"]);
}

#[test]
fn http_to_any_host_but_loopback_causes_a_warning() {
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
fn names_that_the_worker_writes_itself_are_not_forwarded() {
    let variable = "CAPTURE__GATEWAY__FORWARD_FIELDS";
    check_errors(
        &[(variable, "captureType,amount,metadata")],
        &[
            "gateway.forward_fields must not name `amount`",
            "gateway.forward_fields must not name `metadata`",
        ],
    );
    for name in
        ["captureRequestId", "paymentId", "captureAmount", "amount", "expiresAt", "metadata"]
    {
        assert!(load(&[(variable, name)]).is_err(), "{name}");
    }
    assert!(load_file("[gateway]\nforward_fields = [\"\"]\n").is_err());
    let settings = load(&[(variable, "goods,goods,customsCode")]).unwrap();
    let names = ["goods".to_owned(), "customsCode".to_owned()];
    assert_eq!(settings.gateway.forward_fields(), ForwardFields::new(&names).unwrap());
    let warning = "gateway.forward_fields does not name captureType";
    assert!(settings.warnings().iter().any(|text| text.starts_with(warning)));
    assert!(!load(&[]).unwrap().warnings().iter().any(|text| text.starts_with(warning)));
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
fn classes_come_from_files_only_and_map_new_codes_only() {
    let settings = load_file("[classes]\nCARD_FROZEN = \"payer\"\n").unwrap();
    assert_eq!(
        settings.classes.class_of("CARD_FROZEN"),
        crate::domain::capture::class::Class::Payer
    );
    check_errors(&[("CAPTURE__CLASSES__X", "payer")], &["in a settings file only"]);
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
fn all_missing_gateway_settings_are_reported_at_once() {
    let errors = load(&[]).unwrap().require_gateway().unwrap_err().to_string();
    for key in ["BASE_URL", "CLIENT_ID", "PRIVATE_KEY", "PUBLIC_KEY"] {
        assert!(errors.contains(&format!("CAPTURE__GATEWAY__{key}")), "{errors}");
    }
}

#[test]
fn a_probable_mistake_causes_a_warning() {
    let warnings = |url, id| {
        let env = [("CAPTURE__GATEWAY__BASE_URL", url), ("CAPTURE__GATEWAY__CLIENT_ID", id)];
        load(&env).unwrap().warnings().len()
    };
    assert_eq!(warnings("https://gateway.example", "5X"), 0);
    assert_eq!(warnings("http://127.0.0.1:1", "5X"), 0);
    assert_eq!(warnings("http://gateway.example", "5X"), 1);
    assert_eq!(warnings("https://gateway.example", "SANDBOX_5X"), 2);
}
