use super::*;
use crate::{domain::settlement::schedule::fit, lease::Owner};

fn claim() -> Claim {
    let body = concat!(
        r#"{"captureRequestId":"c","paymentId":"p","#,
        r#""captureAmount":{"currency":"HKD","value":"1"}}"#
    );
    Claim::of(&Owner::new("capture", "client"), &Job::parse(body.as_bytes()).unwrap(), true)
}

fn payment_queues(prefetch: u16) -> PaymentQueues {
    PaymentQueues::new(prefetch, [250, 1000, 4000].map(Duration::from_millis).to_vec())
}

/// Enters the queue of payment `p` without giving up; the job was first seen at this time.
async fn enter(queues: &PaymentQueues, first_seen_ms: i64) -> Entered {
    queues.enter("p", &claim(), first_seen_ms, std::future::pending()).await
}

async fn slot(queues: &PaymentQueues, first_seen_ms: i64) -> Slot {
    match enter(queues, first_seen_ms).await {
        Entered::Slot(slot, _) => slot,
        Entered::Full(_) => panic!("the payment queue is full"),
    }
}

/// Starts waiting jobs first seen at these times. Each records its time when it gets the slot.
async fn start_waiting(
    queues: &PaymentQueues,
    ages: impl IntoIterator<Item = i64>,
) -> (Vec<tokio::task::JoinHandle<()>>, Arc<Mutex<Vec<i64>>>) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for age in ages {
        let (queues, order) = (queues.clone(), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            if let Entered::Slot(_slot, _) = enter(&queues, age).await {
                order.lock().unwrap().push(age);
            }
        }));
        tokio::task::yield_now().await;
    }
    (tasks, order)
}

async fn end(tasks: Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn jobs_of_one_payment_get_the_slot_one_by_one_oldest_first() {
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    let (waiting, order) = start_waiting(&queues, [3, 5, 4, 5, 1]).await;
    let other = queues.enter("other", &claim(), 9, std::future::pending()).await;
    assert!(matches!(other, Entered::Slot(..)));
    drop(other);
    drop(first);
    end(waiting).await;
    assert_eq!(*order.lock().unwrap(), [1, 3, 4, 5, 5]);
    assert!(queues.lock().by_payment.is_empty());
    assert_eq!(queues.lock().waiting, 0);
}

#[tokio::test]
async fn an_explicit_final_capture_counts_as_seen_a_minute_later() {
    let job = |more: &str| {
        let amount = r#"{"currency":"HKD","value":"1"}"#;
        let body =
            format!(r#"{{"captureRequestId":"c","paymentId":"p","captureAmount":{amount}{more}}}"#);
        Job::parse(body.as_bytes()).unwrap()
    };
    let last = job(r#","captureType":"FINAL""#);
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    let seen = [(1_000, &last), (1_001, &job("")), (61_001, &job(r#","captureType":"NON_FINAL""#))];
    let ages = seen.map(|(first_seen_ms, job)| counts_as_first_seen_ms(first_seen_ms, job));
    let (waiting, order) = start_waiting(&queues, ages).await;
    drop(first);
    end(waiting).await;
    assert_eq!(*order.lock().unwrap(), [1_001, 61_000, 61_001]);
    assert_eq!(counts_as_first_seen_ms(i64::MAX, &last), i64::MAX);
}

#[tokio::test]
async fn a_job_that_gives_up_does_not_keep_others_from_the_slot() {
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    let (mut waiting, order) = start_waiting(&queues, [1, 2]).await;
    waiting.remove(0).abort();
    drop(first);
    end(waiting).await;
    assert_eq!(*order.lock().unwrap(), [2]);
    assert!(queues.lock().by_payment.is_empty());
    assert_eq!(queues.lock().waiting, 0);
}

#[tokio::test]
async fn a_job_notified_while_it_gives_up_passes_the_slot_on() {
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    let (give_up, given_up) = oneshot::channel::<()>();
    let waiting_job = tokio::spawn({
        let queues = queues.clone();
        async move {
            let given_up = async { drop(given_up.await) };
            queues.enter("p", &claim(), 1, given_up).await
        }
    });
    tokio::task::yield_now().await;
    let next = first.take_next().unwrap();
    drop(give_up);
    assert!(matches!(waiting_job.await.unwrap(), Entered::Full(_)));
    assert!(!first.hand_over(next, None), "the job is gone");
    drop(slot(&queues, 2).await);
    assert_eq!(queues.lock().waiting, 0);
}

#[tokio::test]
async fn a_full_queue_defers_its_youngest_job_for_an_older_one() {
    let queues = payment_queues(4);
    let first = slot(&queues, 0).await;
    let (waiting, order) = start_waiting(&queues, [10, 20]).await;
    assert!(matches!(enter(&queues, 30).await, Entered::Full(_)));
    let (older, older_order) = start_waiting(&queues, [15]).await;
    assert_eq!(queues.lock().waiting, 2);
    drop(first);
    end(waiting).await;
    end(older).await;
    assert_eq!((&*order.lock().unwrap(), &*older_order.lock().unwrap()), (&vec![10], &vec![15]));
    assert_eq!(queues.lock().waiting, 0);
}

/// How many jobs wait, and how many have a slot.
fn taken(queues: &PaymentQueues) -> (usize, usize) {
    let queues = queues.lock();
    (queues.waiting, queues.slots_taken)
}

#[tokio::test]
async fn a_payment_has_few_positions_while_others_need_the_prefetch() {
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    let (waiting, order) = start_waiting(&queues, 1..=16).await;
    let mut others = Vec::new();
    for n in 0..32 {
        others.push(queues.enter(&format!("other {n}"), &claim(), 0, std::future::pending()).await);
    }
    assert!(matches!(enter(&queues, 20).await, Entered::Full(_)));
    let (older, older_order) = start_waiting(&queues, [0]).await;
    assert_eq!(taken(&queues), (2, 33));
    drop(others);
    drop(first);
    end(waiting).await;
    end(older).await;
    assert_eq!((&*order.lock().unwrap(), &*older_order.lock().unwrap()), (&vec![1], &vec![0]));
    assert_eq!(taken(&queues), (0, 0));
}

/// However many jobs are deferred, only as many come back at once as the queue can take by then.
/// Once they are back, they are no longer counted.
#[tokio::test(start_paused = true)]
async fn deferrals_are_spread_over_the_time_that_the_queue_needs() {
    let queues = payment_queues(64);
    let first = slot(&queues, 0).await;
    queues.lock().queue("p").estimate.slot_time = Some(Duration::from_millis(50));
    let (waiting, _) = start_waiting(&queues, 1..=16).await;
    let defer = async || match enter(&queues, 1000).await {
        Entered::Full(wait) => fit(&queues.lock().delays, wait).as_millis(),
        Entered::Slot(..) => panic!("the job got the slot"),
    };
    let mut delays = BTreeMap::new();
    for _ in 0..300 {
        *delays.entry(defer().await).or_insert(0) += 1;
    }
    // 17 jobs of 50 ms each take 0.85 s. With five more it is 1.1 s, with another 60 it is 4.1 s.
    assert_eq!(delays, BTreeMap::from([(250, 5), (1000, 60), (4000, 235)]));
    // A second later, the jobs deferred by 250 ms and by 1 s are back. The others follow in 3 s.
    tokio::time::sleep(Duration::from_millis(1010)).await;
    for _ in 0..5 {
        assert_eq!(defer().await, 250, "no deferred job comes back meanwhile");
    }
    for _ in 0..38 {
        assert_eq!(defer().await, 1000);
    }
    assert_eq!(defer().await, 4000, "the queue now lasts until the others are back");
    drop(first);
    end(waiting).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(slot(&queues, 2000).await);
    assert!(queues.lock().by_payment.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_time_that_jobs_have_the_slot_is_measured() {
    let queues = payment_queues(256);
    let mut held = slot(&queues, 0).await;
    let (waiting, _) = start_waiting(&queues, std::iter::empty()).await;
    for age in 1..=40 {
        let waiting_job = tokio::spawn({
            let queues = queues.clone();
            async move { slot(&queues, age).await }
        });
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let next = held.take_next().unwrap();
        assert!(held.hand_over(next, None));
        held = waiting_job.await.unwrap();
    }
    let slot_time = queues.lock().by_payment["p"].estimate.slot_time.unwrap();
    assert!((19..=22).contains(&slot_time.as_millis()), "{slot_time:?}");
    end(waiting).await;
}

#[tokio::test]
async fn jobs_that_wait_in_redis_count_towards_the_limit() {
    let queues = payment_queues(4);
    let in_redis = (queues.wait_in_redis().unwrap(), queues.wait_in_redis().unwrap());
    assert!(queues.wait_in_redis().is_none());
    let _first = slot(&queues, 0).await;
    assert!(matches!(enter(&queues, 1).await, Entered::Full(_)));
    drop(in_redis);
    assert!(queues.wait_in_redis().is_some());
}
