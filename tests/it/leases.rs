//! The lease and the in-doubt block on a real Redis: which job may capture, which must wait, and
//! what is kept.

use std::time::Duration;

use capture_worker::{
    domain::{
        capture::{
            class::Class,
            outcome::{Capture, FailureVerdict, FinalOutcome, Release},
        },
        job::Job,
    },
    lease::{
        Acquired, Claim, Lease, LeaseTimes, Leases, Owner, RedisOptions, Released, Renewed, Role,
    },
};
use testkit::{
    LIMIT,
    memory::name_server,
    poll::eventually,
    servers::{Persistence, PrivateRedis, Reply},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::env::job;

const TIMES: LeaseTimes = LeaseTimes {
    ttl: Duration::from_secs(30),
    in_doubt_block: Duration::from_secs(600),
    remember: Duration::from_secs(3600),
    longest_call: Duration::from_secs(1),
};

/// Connects to the leases at a server.
async fn leases_at(url: &str, times: LeaseTimes) -> (Leases, DropGuard) {
    let options = RedisOptions { url: url.to_owned(), ..RedisOptions::default() };
    name_server(url, "capture:client").await;
    let leases = Leases::new(&options, owner(), Role::Worker, times).expect("a URL");
    let stop = CancellationToken::new();
    let keeper = (leases.clone(), stop.clone());
    tokio::spawn(async move { keeper.0.keep_connected(keeper.1).await });
    let mut up = leases.up();
    tokio::time::timeout(LIMIT, up.wait_for(|up| *up)).await.expect("in time").expect("connected");
    (leases, stop.drop_guard())
}

fn owner() -> Owner {
    Owner::new("capture", "client")
}

fn claim(job: &Job, posts: bool) -> Claim {
    Claim::of(&owner(), job, posts)
}

fn of(id: &str, value: u64) -> Job {
    Job::parse(&job(id, "p", value)).expect("a job")
}

/// Acquires for a capture that is posted at once.
async fn acquire(leases: &Leases, job: &Job) -> Acquired {
    leases.acquire(&claim(job, true), false).await.expect("Redis answers")
}

#[track_caller]
fn taken(acquired: Acquired) -> Lease {
    match acquired {
        Acquired::Taken(lease) => lease,
        other => panic!("not acquired: {other:?}"),
    }
}

#[track_caller]
fn refused(acquired: Acquired, expected_by_hold: bool, expected_marked: bool) {
    let refused = match acquired {
        Acquired::Held { position: None, marked } => (false, marked),
        Acquired::Blocked { marked } => (true, marked),
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused, (expected_by_hold, expected_marked));
}

const IN_DOUBT: Release = Release::KeepBlock { refused: None };
const KEPT: Released = Released { kept: true, recorded: None };

fn captured() -> FinalOutcome {
    FinalOutcome::Captured(Capture { code: "SUCCESS".into(), ..Capture::default() })
}

fn failed() -> FinalOutcome {
    let code = Some("RISK_REJECT".into());
    FinalOutcome::Failed(FailureVerdict { class: Class::Risk, code, message: None, signed: true })
}

fn closed() -> FinalOutcome {
    let code = Some("ACCESS_DENIED".into());
    FinalOutcome::FailedWhileLeased(FailureVerdict {
        class: Class::Access,
        code,
        message: None,
        signed: true,
    })
}

async fn release(leases: &Leases, lease: &Lease, release: Release) -> bool {
    leases.release(lease, &release).await.expect("Redis answers").kept
}

fn keys(redis: &PrivateRedis) -> Vec<String> {
    let Reply::List(keys) = redis.cmd(&["KEYS", "capture:client:{*"]).expect("keys") else {
        panic!("no list")
    };
    let text = |key| if let Reply::Text(key) = key { key } else { panic!("no text: {key:?}") };
    let mut keys: Vec<String> = keys.into_iter().map(text).collect();
    keys.sort();
    keys
}

fn ttl_ms(redis: &PrivateRedis, key: &str) -> i64 {
    match redis.cmd(&["PTTL", key]).expect("a time") {
        Reply::Int(ms) => ms,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lease_per_payment_and_none_for_a_recorded_outcome() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let (a, b) = (of("a", 100), of("b", 100));
    let lease = taken(acquire(&leases, &a).await);
    assert!(lease.marker().is_none());
    refused(acquire(&leases, &b).await, false, false);
    refused(acquire(&leases, &a).await, false, true);
    assert!(release(&leases, &lease, Release::Final(captured())).await);

    assert!(
        matches!(acquire(&leases, &a).await, Acquired::Recorded(outcome) if outcome == captured())
    );
    // The recorded outcome is about another amount, so the gateway must decide.
    let other = taken(acquire(&leases, &of("a", 101)).await);
    assert!(other.marker().is_some());
    assert!(release(&leases, &other, Release::RollBack).await);
    assert!(
        matches!(acquire(&leases, &a).await, Acquired::Recorded(outcome) if outcome == captured())
    );
    assert!(taken(acquire(&leases, &b).await).marker().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_doubt_block_excludes_other_ids_until_it_is_resolved() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let (a, b) = (of("a", 100), of("b", 100));
    let lease = taken(acquire(&leases, &a).await);
    release(&leases, &lease, IN_DOUBT).await;
    refused(acquire(&leases, &b).await, true, false);
    let again = taken(acquire(&leases, &a).await);
    assert!(again.marker().is_some());
    refused(acquire(&leases, &a).await, false, true);
    release(&leases, &again, Release::Final(failed())).await;
    assert!(
        matches!(acquire(&leases, &a).await, Acquired::Recorded(outcome) if outcome == failed())
    );
    taken(acquire(&leases, &b).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_was_not_sent_leaves_all_keys_unchanged() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let a = of("a", 100);
    let lease = taken(acquire(&leases, &a).await);
    assert_eq!(keys(&redis).len(), 3, "lease, in-doubt block and sent marker");
    assert!(release(&leases, &lease, Release::RollBack).await);
    assert_eq!(keys(&redis), Vec::<String>::new());

    // The in-doubt block of an earlier send keeps its end.
    let lease = taken(acquire(&leases, &a).await);
    release(&leases, &lease, IN_DOUBT).await;
    redis.cmd(&["PEXPIRE", "capture:client:{p}:hold", "9000"]).unwrap();
    let lease = taken(acquire(&leases, &a).await);
    assert!(ttl_ms(&redis, "capture:client:{p}:hold") > 500_000);
    release(&leases, &lease, Release::RollBack).await;
    let left = ttl_ms(&redis, "capture:client:{p}:hold");
    assert!((1..=9000).contains(&left), "{left}");
    assert_eq!(keys(&redis), ["capture:client:{p}:hold", "capture:client:{p}:sent:a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_records_no_intent_until_the_job_posts() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let a = of("a", 100);
    let asked = leases.acquire(&claim(&a, false), false).await.unwrap();
    let mut lease = taken(asked);
    assert_eq!(keys(&redis), ["capture:client:{p}:lease"]);
    assert_eq!(leases.renew(&mut lease, true, None).await.unwrap(), Renewed::Kept);
    assert_eq!(keys(&redis).len(), 3);
    release(&leases, &lease, Release::EndBlock).await;
    assert_eq!(keys(&redis), ["capture:client:{p}:sent:a"], "the sent marker stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_can_be_repeated_and_a_lost_lease_affects_no_other() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let (a, b) = (of("a", 100), of("b", 100));
    let claim = claim(&a, true);
    taken(leases.acquire(&claim, false).await.unwrap());
    let mut lease = taken(leases.acquire(&claim, false).await.unwrap());
    assert!(lease.marker().is_none(), "its own sent marker is not an earlier acquisition's");

    redis.cmd(&["DEL", "capture:client:{p}:lease", "capture:client:{p}:hold"]).unwrap();
    let others = taken(acquire(&leases, &b).await);
    assert_eq!(leases.renew(&mut lease, true, None).await.unwrap(), Renewed::Lost);
    let modes = [
        IN_DOUBT,
        Release::EndBlock,
        Release::RollBack,
        Release::FailedWhileLeased(closed()),
        Release::RollBackAlways,
    ];
    for (mode, marked) in modes.into_iter().zip([true, true, true, true, false]) {
        assert!(!release(&leases, &lease, mode).await);
        refused(acquire(&leases, &a).await, false, marked);
    }
    // A verdict is recorded even after the lease is lost, and a recorded capture is never
    // overwritten.
    assert!(!release(&leases, &lease, Release::Final(captured())).await);
    assert!(!release(&leases, &lease, Release::Final(failed())).await);
    assert!(
        matches!(acquire(&leases, &a).await, Acquired::Recorded(outcome) if outcome == captured())
    );
    assert!(release(&leases, &others, IN_DOUBT).await);
}

/// An acquisition whose reply was lost is repeated after its lease has expired, and a copy of the
/// job has been sent meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_repeated_acquisition_finds_the_sent_marker_of_a_copy() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let (a, b) = (of("a", 100), of("b", 100));
    let claim = claim(&a, true);
    taken(leases.acquire(&claim, false).await.unwrap());
    redis.cmd(&["DEL", "capture:client:{p}:lease"]).unwrap();
    let copy = taken(acquire(&leases, &a).await);
    assert!(copy.marker().is_some());
    release(&leases, &copy, IN_DOUBT).await;
    let late = taken(leases.acquire(&claim, false).await.unwrap());
    assert!(late.marker().is_some());
    release(&leases, &late, Release::RollBack).await;
    refused(acquire(&leases, &b).await, true, false);

    // An acquisition that is given up rolls back what it wrote, even after its lease has expired.
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    taken(leases.acquire(&claim, false).await.unwrap());
    redis.cmd(&["DEL", "capture:client:{p}:lease"]).unwrap();
    leases.roll_back(&claim).await.unwrap();
    assert_eq!(keys(&redis), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_expires_and_leaves_the_in_doubt_block() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let times = LeaseTimes { ttl: Duration::from_millis(200), ..TIMES };
    let (leases, _stop) = leases_at(&redis.url(), times).await;
    let (a, b) = (of("a", 100), of("b", 100));
    let lease = taken(acquire(&leases, &a).await);
    eventually("the lease has expired", LIMIT, async || keys(&redis).len() == 2).await;
    assert!(lease.left().is_zero());
    refused(acquire(&leases, &b).await, true, false);
    taken(acquire(&leases, &a).await);
}

/// Joins the waiting list, or acquires the lease.
async fn wait(leases: &Leases, claim: &Claim) -> Acquired {
    leases.acquire(claim, true).await.expect("Redis answers")
}

#[track_caller]
fn stands_at(acquired: &Acquired, expected: u32) {
    let Acquired::Held { position, .. } = acquired else { panic!("{acquired:?}") };
    assert_eq!(*position, Some(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_goes_to_the_first_waiter_and_to_no_one_else() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let claims = ["a", "b", "c", "d"].map(|id| claim(&of(id, 100), true));
    let [a, b, c, d] = &claims;
    let lease = taken(wait(&leases, a).await);
    for (claim, place) in [(b, 0), (c, 1), (b, 0), (d, 2)] {
        stands_at(&wait(&leases, claim).await, place);
    }
    leases.roll_back(c).await.unwrap();
    stands_at(&wait(&leases, d).await, 1);
    assert!(release(&leases, &lease, Release::EndBlock).await);
    // The lease is granted to b, whichever job asks first.
    stands_at(&wait(&leases, d).await, 0);
    refused(acquire(&leases, &of("e", 100)).await, false, false);
    let lease = taken(wait(&leases, b).await);
    assert!(release(&leases, &lease, Release::EndBlock).await);
    // A job that stops waiting after the grant passes the lease on.
    stands_at(&wait(&leases, c).await, 0);
    leases.roll_back(d).await.unwrap();
    let lease = taken(wait(&leases, c).await);
    // A copy whose outcome is recorded while it waits needs no lease, and blocks no other job.
    let copy = claim(&of("c", 100), true);
    stands_at(&wait(&leases, &copy).await, 0);
    stands_at(&wait(&leases, d).await, 1);
    assert!(release(&leases, &lease, Release::Final(captured())).await);
    assert!(matches!(wait(&leases, &copy).await, Acquired::Recorded(_)));
    taken(wait(&leases, d).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_not_claimed_expires_soon() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let [a, dead, c] = ["a", "dead", "c"].map(|id| claim(&of(id, 100), true));
    let lease = taken(wait(&leases, &a).await);
    stands_at(&wait(&leases, &dead).await, 0);
    stands_at(&wait(&leases, &c).await, 1);
    release(&leases, &lease, Release::EndBlock).await;
    assert!((1..=500).contains(&ttl_ms(&redis, "capture:client:{p}:lease")));
    eventually("the next job has the lease", Duration::from_secs(5), async || {
        matches!(wait(&leases, &c).await, Acquired::Taken(_))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_handed_over_in_one_step_and_to_waiting_workers() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let claims = ["a", "b", "c", "other"].map(|id| claim(&of(id, 100), true));
    let [a, b, c, other] = &claims;
    let lease = taken(wait(&leases, a).await);
    stands_at(&wait(&leases, other).await, 0);
    // The lease stays in this worker, although another one waits.
    let handed = leases.hand_over(&lease, &Release::Final(captured()), b, true).await.unwrap();
    let (KEPT, Acquired::Taken(lease)) = handed else { panic!("{handed:?}") };
    assert!(lease.marker().is_none());
    let known = |id| redis.cmd(&["EXISTS", &format!("capture:client:{{p}}:known:{id}")]).unwrap();
    assert!(matches!((known("a"), known("b")), (Reply::Int(1), Reply::Int(0))));
    assert!(ttl_ms(&redis, "capture:client:{p}:hold") > 590_000, "the in-doubt block of b");
    // Now the lease goes to the waiting worker.
    let handed = leases.hand_over(&lease, &Release::EndBlock, c, false).await.unwrap();
    let (KEPT, handed) = handed else { panic!("{handed:?}") };
    stands_at(&handed, 0);
    let lease = taken(wait(&leases, other).await);
    // A job with a recorded outcome gets no lease, and the waiting list advances.
    let copy = claim(&of("a", 100), true);
    let handed = leases.hand_over(&lease, &Release::EndBlock, &copy, true).await.unwrap();
    assert!(matches!(handed, (KEPT, Acquired::Recorded(_))), "{handed:?}");
    let lease = taken(wait(&leases, c).await);
    // In doubt: the block excludes the next job, and the lease is free for the id in doubt.
    let b = claim(&of("b", 100), true);
    let handed = leases.hand_over(&lease, &IN_DOUBT, &b, true).await.unwrap();
    assert!(matches!(handed, (KEPT, Acquired::Blocked { marked: true })), "{handed:?}");
    let again = taken(acquire(&leases, &of("c", 100)).await);
    assert!(again.marker().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_is_not_handed_over() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (leases, _stop) = leases_at(&redis.url(), TIMES).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| claim(&of(id, 100), true));
    let lost = taken(wait(&leases, &a).await);
    redis.cmd(&["DEL", "capture:client:{p}:lease", "capture:client:{p}:hold"]).unwrap();
    let others = taken(wait(&leases, &c).await);
    let handed = leases.hand_over(&lost, &IN_DOUBT, &b, true).await.unwrap();
    let (Released { kept: false, .. }, handed) = handed else { panic!("{handed:?}") };
    stands_at(&handed, 0);
    release(&leases, &others, Release::EndBlock).await;
    taken(wait(&leases, &b).await);
}

/// The clients for a Cluster and for Sentinels run the same scripts.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_and_a_server_behind_sentinels_serve_leases_too() {
    let cluster = PrivateRedis::start_cluster().await.unwrap();
    let master = PrivateRedis::start(Persistence::None).await.unwrap();
    let sentinel = master.start_sentinel().await.unwrap();
    let nodes = format!("{0},{0}", cluster.url());
    let sentinels = format!("redis-sentinel://127.0.0.1:{}#main", sentinel.port());
    for url in [nodes, sentinels] {
        let (leases, _stop) = leases_at(&url, TIMES).await;
        let (a, b) = (of("a", 100), of("b", 100));
        let lease = taken(acquire(&leases, &a).await);
        refused(acquire(&leases, &b).await, false, false);
        let [b, c] = [&b, &of("c", 1)].map(|job| claim(job, true));
        let handed = leases.hand_over(&lease, &Release::Final(captured()), &b, true).await;
        let Ok((KEPT, Acquired::Taken(lease))) = handed else { panic!("{url}: {handed:?}") };
        stands_at(&wait(&leases, &c).await, 0);
        assert!(release(&leases, &lease, Release::Final(captured())).await, "{url}");
        taken(wait(&leases, &c).await);
        for known in [of("a", 100), of("b", 100)] {
            let asked = acquire(&leases, &known).await;
            assert!(matches!(asked, Acquired::Recorded(outcome) if outcome == captured()), "{url}");
        }
        let elsewhere = Job::parse(&job("z", "another payment: {p}", 1)).unwrap();
        taken(acquire(&leases, &elsewhere).await);
    }
    assert!(!keys(&master).is_empty() && !keys(&cluster).is_empty());
}
