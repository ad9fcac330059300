use super::*;

const OPTIONS: BreakerOptions = BreakerOptions {
    failures: 3,
    pause: Duration::from_secs(1),
    max_pause: Duration::from_secs(5),
};

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new(OPTIONS, Arc::default(), Arc::default())
}

fn unhealthy(illness: FailedReply) -> GatewayHealth {
    GatewayHealth::Unhealthy(illness, "no normal reply".into())
}

/// Records this many failed captures, each of a different payment.
fn fails(breaker: &CircuitBreaker, times: u32) {
    for n in 0..times {
        breaker.record_reply(
            CallKind::Capture,
            &format!("p-{n}"),
            &unhealthy(FailedReply::NoAnswer),
        );
    }
}

fn fails_for(breaker: &CircuitBreaker, payment_id: &str, illness: FailedReply, times: u32) {
    for _ in 0..times {
        breaker.record_reply(CallKind::Capture, payment_id, &unhealthy(illness));
    }
}

#[test]
fn it_opens_after_consecutive_failures() {
    let breaker = breaker();
    fails(&breaker, 2);
    breaker.record_reply(CallKind::Capture, "p", &GatewayHealth::Healthy);
    fails(&breaker, 2);
    assert!(!breaker.is_open());
    // A normal reply to an inquiry does not reset the count: captures may still fail.
    breaker.record_reply(CallKind::Inquiry, "p", &GatewayHealth::Healthy);
    fails(&breaker, 3);
    assert!(breaker.is_open());
    breaker.record_reply(CallKind::Capture, "p", &GatewayHealth::Throttled(None));
    assert!(!breaker.is_open());
    fails(&breaker, 2);
    assert!(!breaker.is_open());
}

#[test]
fn closed_by_a_probe_it_is_on_trial_until_a_capture_gets_a_reply() {
    let breaker = breaker();
    fails(&breaker, 3);
    for pause in [2, 4, 5, 5] {
        breaker.record_probe(Some(&GatewayHealth::Healthy), "good", None);
        assert!(!breaker.is_open());
        fails(&breaker, 1);
        assert!(breaker.is_open());
        assert_eq!(breaker.lock().pause, Duration::from_secs(pause));
    }
    breaker.record_probe(Some(&GatewayHealth::Healthy), "good", None);
    breaker.record_reply(CallKind::Capture, "p", &GatewayHealth::Healthy);
    fails(&breaker, 2);
    assert!(!breaker.is_open());
    assert_eq!(breaker.lock().pause, OPTIONS.pause);
}

#[test]
fn failures_of_fewer_than_three_payments_do_not_open_it() {
    let breaker = breaker();
    for payment_id in ["a", "b"] {
        fails_for(&breaker, payment_id, FailedReply::NoAnswer, 50);
        fails_for(&breaker, payment_id, FailedReply::Refused, 50);
    }
    assert!(!breaker.is_open());
    fails_for(&breaker, "c", FailedReply::Refused, 1);
    assert!(breaker.is_open());
}

#[test]
fn calls_that_were_not_sent_count_whatever_their_payment() {
    let breaker = breaker();
    fails_for(&breaker, "a", FailedReply::NotSent, 2);
    assert!(!breaker.is_open());
    fails_for(&breaker, "a", FailedReply::NotSent, 1);
    assert!(breaker.is_open());
}

#[test]
fn a_threshold_below_three_lowers_the_number_of_payments_too() {
    let options = BreakerOptions { failures: 1, ..OPTIONS };
    let breaker = CircuitBreaker::new(options, Arc::default(), Arc::default());
    fails_for(&breaker, "a", FailedReply::NoAnswer, 1);
    assert!(breaker.is_open());
}

#[test]
fn a_refused_request_does_not_open_it_while_on_trial() {
    let breaker = breaker();
    fails(&breaker, 3);
    breaker.record_probe(Some(&GatewayHealth::Healthy), "good", None);
    fails_for(&breaker, "a", FailedReply::Refused, 5);
    assert!(!breaker.is_open());
    fails_for(&breaker, "b", FailedReply::NoAnswer, 1);
    assert!(breaker.is_open());
}

#[test]
fn a_reply_about_another_payment_closes_it_without_a_trial() {
    let breaker = breaker();
    fails(&breaker, 3);
    breaker.record_probe(
        Some(&unhealthy(FailedReply::Refused)),
        "good",
        Some(&GatewayHealth::Healthy),
    );
    assert!(!breaker.is_open());
    // The failures of these payments are ignored now.
    fails(&breaker, 3);
    fails(&breaker, 3);
    assert!(!breaker.is_open());
    for payment_id in ["a", "b", "c"] {
        fails_for(&breaker, payment_id, FailedReply::NoAnswer, 1);
    }
    assert!(breaker.is_open());
}

#[test]
fn failures_of_a_payment_are_ignored_if_others_get_replies() {
    let breaker = breaker();
    for _ in 0..2 {
        fails(&breaker, 2);
        breaker.record_reply(CallKind::Capture, "good", &GatewayHealth::Healthy);
    }
    fails(&breaker, 2);
    fails_for(&breaker, "c", FailedReply::NoAnswer, 2);
    assert!(!breaker.is_open());
    // After a normal reply to its capture, a payment counts again.
    for payment_id in ["p-0", "p-1", "c"] {
        breaker.record_reply(CallKind::Capture, payment_id, &GatewayHealth::Healthy);
    }
    fails(&breaker, 3);
    assert!(breaker.is_open());
}

#[test]
fn failed_probes_double_the_pause_and_rotate_through_payments() {
    let breaker = breaker();
    breaker.record_reply(CallKind::Capture, "good", &GatewayHealth::Healthy);
    fails(&breaker, 3);
    for _ in 0..3 {
        let unhealthy = unhealthy(FailedReply::NoAnswer);
        breaker.record_probe(Some(&unhealthy), "good", Some(&unhealthy));
    }
    assert!(breaker.is_open());
    let mut state = breaker.lock();
    assert_eq!(state.pause, OPTIONS.max_pause);
    let asked: Vec<_> = (0..4).map(|_| state.targets()).collect();
    let failed = ["p-0", "p-1", "p-2", "p-0"];
    assert_eq!(asked, failed.map(|failed| (Some(failed.to_owned()), "good".to_owned())));
}

/// All payments that a worker has seen since its start may be faulty, while the jobs behind them
/// are not.
#[tokio::test]
async fn without_a_healthy_payment_a_probe_also_asks_about_none() {
    let breaker = breaker();
    fails(&breaker, 3);
    let waits = breaker.closed_for("waits");
    let asks = async {
        let others: Vec<_> = (0..3).map(|_| breaker.lock().targets().1).collect();
        assert_eq!(others, [NO_PAYMENT, "waits", NO_PAYMENT]);
        breaker.record_probe(
            Some(&unhealthy(FailedReply::NoAnswer)),
            NO_PAYMENT,
            Some(&GatewayHealth::Healthy),
        );
    };
    tokio::join!(waits, asks);
    // The reply proves too little about real payments: the breaker is on trial.
    fails_for(&breaker, "a", FailedReply::NoAnswer, 1);
    assert!(breaker.is_open());
}
