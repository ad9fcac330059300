//! Compares the lease scripts with the model's functions. Random operations on a real Redis and on
//! `tests/model/redis.rs` must return the same replies and leave the same keys. So what the model
//! proves about its functions holds for the scripts too.

#[path = "../model/redis.rs"]
mod model;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use testkit::servers::{Persistence, PrivateRedis, Reply};

use self::model::{Asked, Claim, FinalOutcome, Mode, NOBODY, Record, Redis, Renewed, Tells, Token};

/// The number of rounds. Each begins with an empty Redis.
const ROUNDS: u64 = 100;
const OPERATIONS: usize = 100;
const TOKENS: u8 = 5;
const IDS_USED: u8 = 3;
const LONG_MS: &str = "3600000";
const SEED: u64 = 20_260_101;

const ACQUIRE: &str = concat!(
    include_str!("../../src/lease/scripts/payment.lua"),
    include_str!("../../src/lease/scripts/acquire.lua")
);
const RENEW: &str = concat!(
    include_str!("../../src/lease/scripts/payment.lua"),
    include_str!("../../src/lease/scripts/renew.lua")
);
const RELEASE: &str = concat!(
    include_str!("../../src/lease/scripts/payment.lua"),
    include_str!("../../src/lease/scripts/release.lua")
);
const HAND_OVER: &str = concat!(
    include_str!("../../src/lease/scripts/payment.lua"),
    include_str!("../../src/lease/scripts/hand_over.lua")
);

/// Returns one list per key: its value, and an error text if it never expires.
const DUMP: &str = r"
local found = {}
for n, key in ipairs(KEYS) do
  local value
  if string.sub(key, -5) == ':line' then
    value = redis.call('LRANGE', key, 0, -1)
  else
    value = redis.call('GET', key)
  end
  found[n] = {value}
  if redis.call('PTTL', key) == -1 then found[n][2] = 'never expires' end
end
return found
";

/// One operation on Redis and on the model.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Acquire {
        claim: Claim,
        waits: bool,
    },
    Renew {
        claim: Claim,
        posts: bool,
        denied_at: Option<u8>,
    },
    Release {
        claim: Claim,
        mode: Mode,
        hold_left: i64,
    },
    HandOver {
        claim: Claim,
        mode: Mode,
        hold_left: i64,
        next: Claim,
        stays: bool,
    },
    /// The expiry of a key.
    Expire(Key),
}

/// One key of a payment or of an id.
#[derive(Clone, Copy, Debug)]
enum Key {
    Lease,
    Hold,
    Line,
    Mark(u8),
    Known(u8),
    Replaced(u8),
}

impl Key {
    fn all() -> impl Iterator<Item = Self> {
        let ids =
            (0..IDS_USED).flat_map(|id| [Self::Mark(id), Self::Known(id), Self::Replaced(id)]);
        [Self::Lease, Self::Hold, Self::Line].into_iter().chain(ids)
    }

    fn name(self) -> String {
        match self {
            Self::Lease => "{p}:lease".into(),
            Self::Hold => "{p}:hold".into(),
            Self::Line => "{p}:line".into(),
            Self::Mark(id) => format!("{{p}}:sent:{id}"),
            Self::Known(id) => format!("{{p}}:known:{id}"),
            Self::Replaced(id) => format!("{{p}}:replaced:{id}"),
        }
    }
}

/// The text of a token in Redis. The token of an ended acquisition is the one that `record_intent`
/// writes.
fn spell(token: Token) -> String {
    if token == NOBODY { "0".repeat(32) } else { format!("{:032x}", u32::from(token.0) + 0xa0) }
}

/// The text of an id. Different ids may have different lengths.
fn spell_id(id: u8) -> String {
    "id".repeat(usize::from(id) + 1)
}

fn spell_amount(amount: u8) -> String {
    format!("HKD:{}", u32::from(amount) * 90 + 1)
}

fn spell_record((amount, final_outcome): Record) -> String {
    let (kind, json) = match final_outcome {
        FinalOutcome::Captured => ("captured", r#"{"captured":{"code":"SUCCESS"}}"#.to_owned()),
        FinalOutcome::Failed(word) => {
            ("failed", format!(r#"{{"failed":{{"code":"\ncaptured\n{word}"}}}}"#))
        }
        FinalOutcome::Closed(word) => {
            ("closed", format!(r#"{{"closed":{{"code":"\nfailed\n{word}"}}}}"#))
        }
    };
    format!("{}\n{kind}\n{json}", spell_amount(amount))
}

/// The text of a sent marker, after its token.
fn spell_tells(tells: Tells) -> String {
    let denied_at = tells.denied_at.map(|replay| replay.to_string()).unwrap_or_default();
    let refused = tells.refused.map(|(amount, word)| format!("\n{}", spell_refused(amount, word)));
    denied_at + &refused.unwrap_or_default()
}

fn spell_refused(amount: u8, word: u8) -> String {
    format!("{}\nCODE_{word}", spell_amount(amount))
}

fn flag(is: bool) -> String {
    String::from(if is { "1" } else { "0" })
}

fn words(script: &str, keys: &[String], args: &[String]) -> Vec<String> {
    let mut words = vec!["EVAL".to_owned(), script.to_owned(), keys.len().to_string()];
    words.extend_from_slice(keys);
    words.extend_from_slice(args);
    words
}

fn keys_of(claim: Claim) -> Vec<String> {
    let keys = [Key::Lease, Key::Hold, Key::Line].map(Key::name);
    keys.into_iter().chain(keys_of_id(claim)).collect()
}

fn keys_of_id(claim: Claim) -> [String; 3] {
    [Key::Mark(claim.id), Key::Known(claim.id), Key::Replaced(claim.id)].map(Key::name)
}

/// The arguments that `src/lease/redis/scripts.rs::Scripts::call` passes.
fn args_of(claim: Claim) -> Vec<String> {
    let mut args = vec![LONG_MS.to_owned(); 5];
    args.extend([spell(claim.token), spell_id(claim.id), spell_amount(claim.amount)]);
    args
}

/// The arguments that `src/lease/redis/scripts.rs::Scripts::recording_call` passes.
fn release_args(claim: Claim, mode: Mode, hold_left: i64) -> Vec<String> {
    let record = |final_outcome| spell_record((claim.amount, final_outcome));
    let (name, outcome, refused) = match mode {
        Mode::Final(final_outcome) => ("final", record(final_outcome), None),
        Mode::Close(final_outcome) => ("close", record(final_outcome), None),
        Mode::Replace(final_outcome) => ("replace", record(final_outcome), None),
        Mode::Replaced(final_outcome) => ("replaced", record(final_outcome), None),
        Mode::End => ("end", String::new(), None),
        Mode::Keep { refused } => ("keep", String::new(), refused),
        Mode::Back => ("roll_back", String::new(), None),
        Mode::Forget => ("roll_back_lost", String::new(), None),
    };
    let refused = refused.map(|word| spell_refused(claim.amount, word)).unwrap_or_default();
    let mut args = args_of(claim);
    args.extend([name.to_owned(), outcome, hold_left.to_string(), refused]);
    args
}

fn command(operation: Operation) -> Vec<String> {
    match operation {
        Operation::Acquire { claim, waits } => {
            let mut args = args_of(claim);
            args.extend([flag(claim.posts), flag(waits)]);
            words(ACQUIRE, &keys_of(claim), &args)
        }
        Operation::Renew { claim, posts, denied_at } => {
            let mut args = args_of(claim);
            let denied_at = denied_at.map(|replay| replay.to_string()).unwrap_or_default();
            args.extend([flag(posts), denied_at]);
            words(RENEW, &keys_of(claim), &args)
        }
        Operation::Release { claim, mode, hold_left } => {
            words(RELEASE, &keys_of(claim), &release_args(claim, mode, hold_left))
        }
        Operation::HandOver { claim, mode, hold_left, next, stays } => {
            let mut keys = keys_of(claim);
            keys.extend(keys_of_id(next));
            let mut args = release_args(claim, mode, hold_left);
            args.extend([flag(stays), spell(next.token), spell_id(next.id)]);
            args.extend([spell_amount(next.amount), flag(next.posts)]);
            words(HAND_OVER, &keys, &args)
        }
        Operation::Expire(key) => vec!["DEL".into(), key.name()],
    }
}

/// A reply of a script: its tag, and the facts of that tag.
fn tagged(tag: &str, facts: impl IntoIterator<Item = Reply>) -> Reply {
    Reply::List([Reply::Text(tag.into())].into_iter().chain(facts).collect())
}

fn optional(text: Option<String>) -> Reply {
    text.map_or(Reply::Nil, Reply::Text)
}

/// The reply of `acquire` in the form of the script. A flag for an in-doubt block replaces its
/// remaining time.
fn acquired(claim: Claim, asked: Asked) -> Reply {
    let flag = |is: bool| Reply::Int(i64::from(is));
    match asked {
        Asked::Known(final_outcome) => {
            tagged("recorded", [Reply::Text(spell_record((claim.amount, final_outcome)))])
        }
        Asked::Replaced => tagged("replaced", []),
        Asked::Held { marked, place } => {
            let position = place.and_then(|place| i64::try_from(place).ok());
            tagged("held", [flag(marked), position.map_or(Reply::Nil, Reply::Int)])
        }
        Asked::Hold { marked } => tagged("blocked", [flag(marked)]),
        Asked::Taken { marker, hold_was_there } => {
            let block_left = if hold_was_there { Reply::Int(1) } else { Reply::Nil };
            tagged("taken", [optional(marker.map(spell_tells)), block_left])
        }
    }
}

/// The reply of `released`: whether the lease was still held, and the recorded outcome.
fn released((is_ours, found): (bool, Option<Record>)) -> Reply {
    let tag = if is_ours { "released" } else { "lost" };
    tagged(tag, [optional(found.map(spell_record))])
}

fn on_the_model(redis: &mut Redis, operation: Operation) -> Option<Reply> {
    Some(match operation {
        Operation::Acquire { claim, waits } => acquired(claim, redis.acquire(claim, waits)),
        Operation::Renew { claim, posts, denied_at } => {
            let tag = match redis.renew(claim, posts, denied_at) {
                Renewed::Lost => "lost",
                Renewed::Kept => "kept",
                Renewed::Recorded => "recorded",
            };
            tagged(tag, [])
        }
        Operation::Release { claim, mode, .. } => released(redis.release(claim, mode)),
        Operation::HandOver { claim, mode, next, stays, .. } => {
            let (release, acquire) = redis.hand_over(claim, mode, next, stays);
            Reply::List(vec![released(release), acquired(next, acquire)])
        }
        Operation::Expire(key) => {
            match key {
                Key::Lease => redis.payments[0].lease = None,
                Key::Hold => redis.payments[0].hold = None,
                Key::Line => redis.payments[0].line.clear(),
                Key::Mark(id) => redis.keys[usize::from(id)].mark = None,
                Key::Known(id) => redis.keys[usize::from(id)].known = None,
                Key::Replaced(id) => redis.keys[usize::from(id)].replaced = None,
            }
            return None;
        }
    })
}

/// Replaces the remaining time of an in-doubt block by a constant.
fn without_times(reply: Reply) -> Reply {
    let Reply::List(items) = reply else { return reply };
    match items.as_slice() {
        [Reply::Text(tag), marker, Reply::Int(1..)] if tag == "taken" => {
            tagged("taken", [marker.clone(), Reply::Int(1)])
        }
        // A reply of `hand_over.lua` has two replies.
        _ => Reply::List(items.into_iter().map(without_times).collect()),
    }
}

/// The value of a key that the model expects.
fn expected(redis: &Redis, key: Key) -> Reply {
    let payment = &redis.payments[0];
    let text = |text: Option<String>| text.map_or(Reply::Nil, Reply::Text);
    match key {
        Key::Lease => text(payment.lease.map(spell)),
        Key::Hold => text(payment.hold.map(|(token, id)| spell(token) + &spell_id(id))),
        Key::Line => Reply::List(payment.line.iter().map(|t| Reply::Text(spell(*t))).collect()),
        Key::Mark(id) => {
            let mark = redis.keys[usize::from(id)].mark;
            text(mark.map(|mark| spell(mark.by) + &spell_tells(mark.tells)))
        }
        Key::Known(id) => text(redis.keys[usize::from(id)].known.map(spell_record)),
        Key::Replaced(id) => text(redis.keys[usize::from(id)].replaced.map(spell_record)),
    }
}

fn any_claim(random: &mut StdRng, claims: &[Claim]) -> Claim {
    claims[random.random_range(0..claims.len())]
}

fn any_mode(random: &mut StdRng) -> Mode {
    let word = random.random_range(0..3);
    match random.random_range(0..11) {
        0 => Mode::Final(FinalOutcome::Captured),
        1 => Mode::Final(FinalOutcome::Failed(word)),
        2 => Mode::End,
        3 | 4 => Mode::Keep { refused: random.random_bool(0.4).then_some(word) },
        5 => Mode::Back,
        6 => Mode::Close(FinalOutcome::Closed(word)),
        7 => Mode::Replace(FinalOutcome::Closed(word)),
        8 => Mode::Replace(FinalOutcome::Failed(word)),
        9 if random.random_bool(0.3) => Mode::Replaced(FinalOutcome::Failed(word)),
        _ => Mode::Forget,
    }
}

fn any_operation(random: &mut StdRng, claims: &[Claim]) -> Operation {
    let claim = any_claim(random, claims);
    let hold_left = if random.random_bool(0.5) { -2 } else { 1_800_000 };
    match random.random_range(0..20) {
        0..8 => Operation::Acquire { claim, waits: random.random_bool(0.7) },
        8..10 => {
            let denied_at = random.random_bool(0.3).then(|| random.random_range(0..12));
            Operation::Renew { claim, posts: random.random_bool(0.5), denied_at }
        }
        10..14 => Operation::Release { claim, mode: any_mode(random), hold_left },
        14..18 => Operation::HandOver {
            claim,
            mode: any_mode(random),
            hold_left,
            next: any_claim(random, claims),
            stays: random.random_bool(0.5),
        },
        _ => {
            let keys: Vec<Key> = Key::all().collect();
            Operation::Expire(keys[random.random_range(0..keys.len())])
        }
    }
}

/// Random claims in which each token belongs to one job, as in workers.
fn any_claims(random: &mut StdRng) -> Vec<Claim> {
    let claim = |token| Claim {
        payment: 0,
        token: Token(token),
        id: random.random_range(0..IDS_USED),
        amount: u8::from(random.random_bool(0.1)),
        posts: random.random_bool(0.7),
    };
    (1..=TOKENS).map(claim).collect()
}

fn ask(redis: &PrivateRedis, words: &[String]) -> Reply {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    redis.cmd(&words).expect("Redis answers")
}

/// The value of each key, as [`DUMP`] returns it.
fn dump(redis: &PrivateRedis) -> Vec<Reply> {
    let keys: Vec<String> = Key::all().map(Key::name).collect();
    match ask(redis, &words(DUMP, &keys, &[])) {
        Reply::List(found) => found,
        other => panic!("no list: {other:?}"),
    }
}

#[tokio::test]
async fn the_scripts_behave_like_the_models_functions() {
    let server = PrivateRedis::start(Persistence::None).await.expect("a Redis");
    for round in 0..ROUNDS {
        let mut random = StdRng::seed_from_u64(SEED + round);
        let claims = any_claims(&mut random);
        let (mut model, mut done) = (Redis::default(), Vec::new());
        ask(&server, &["FLUSHALL".into()]);
        for _ in 0..OPERATIONS {
            let operation = any_operation(&mut random, &claims);
            done.push(operation);
            let reply = without_times(ask(&server, &command(operation)));
            if let Some(expected) = on_the_model(&mut model, operation) {
                assert_eq!(reply, expected, "round {round}: {done:#?}");
            }
            for (key, found) in Key::all().zip(dump(&server)) {
                let expected = Reply::List(vec![expected(&model, key)]);
                assert_eq!(found, expected, "round {round}, {key:?}: {done:#?}");
            }
        }
    }
}
