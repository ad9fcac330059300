//! What the model knows at one moment, and what a configuration bounds.

use capture_worker::domain::class::Class;

use crate::{
    domain::{Came, Carried, DENIED, Known, Left, Said, Todo},
    redis::{Claim, Fate, IDS, Mode, NOBODY, Redis, Tells, Token},
};

/// Two workers, each with two jobs in hand at most.
pub(crate) const SLOTS: usize = 4;
pub(crate) const OPERATORS: usize = 2;
pub(crate) const LATER: usize = 2;

/// A message: a job, or a dead letter if it has a class. `copy` tells the copies of a job apart: it stays with a message
/// wherever that goes, so that the loss of any one of them is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    pub(crate) id: u8,
    pub(crate) copy: u8,
    pub(crate) amount: u8,
    pub(crate) expires: bool,
    pub(crate) carried: Carried,
    pub(crate) letter: Option<(Class, bool)>,
}

/// A lease in hand: `src/lease/mod.rs::Lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub(crate) marker: Option<Tells>,
    /// Hold and mark are written.
    pub(crate) announced: bool,
    /// An inquiry has shown that there is no such capture: post.
    pub(crate) denied: bool,
    /// Its time ran out while its worker stood still.
    pub(crate) overdue: bool,
    /// The doubt about its id began with it.
    pub(crate) opened: bool,
    /// It came by a hand-over.
    pub(crate) handed: bool,
}

/// Where a delivery stands in the pipeline: the awaits of `src/worker/process.rs` and `call.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Delivered, perhaps behind another job of the payment in the local line.
    Fresh,
    /// In the line in Redis.
    Stands { marked: bool },
    /// The lease is taken.
    Holds(Lease),
    /// An inquiry is under way.
    Inquires(Lease),
    /// A capture is under way.
    Posts(Lease),
    /// The reply is judged; the lease is still in hand.
    Judged { lease: Lease, came: Came, sent: Left, called: bool },
    /// To be published, then acked.
    Settles { todo: Todo, letter: bool, result: bool, remembered: bool },
    /// To be acked.
    Acks,
    /// A mutation: acked, and not yet published.
    AckedFirst { todo: Todo },
}

/// A delivery in hand. `cut`: the session that delivered it is lost, and the broker has given it to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) step: Step,
    pub(crate) cut: bool,
}

/// What an operator is about to do with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    /// The same id again.
    Same,
    /// A fresh id.
    Fresh,
    /// It captured: tell so.
    Settle,
    /// Nothing: the letter goes back.
    Refuse,
}

/// `src/dead_letters/act.rs::Closing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Closing {
    None,
    /// The lease is in hand.
    Lease,
    /// A failure is on record.
    Replace,
}

/// Where an operator stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Act {
    /// The letter is looked at.
    Looks,
    /// The id is to be inquired about.
    Asks { closing: Closing },
    /// Decided; what is left to do in Redis.
    Decided { verdict: Verdict, closing: Closing },
    /// Published, to be acked.
    Acks,
}

/// A call to Redis that goes on in the background: `src/worker/process.rs::give_up`,
/// `src/worker/call.rs::release_later`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Later {
    pub(crate) worker: usize,
    pub(crate) claim: Claim,
    pub(crate) mode: Mode,
    pub(crate) opened: bool,
}

/// An id at the gateway. The first final verdict stands for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    /// The verdict and the amount that it is about.
    pub(crate) verdict: Option<(Fate, u8)>,
    /// Accepted and not yet decided, for this amount.
    pub(crate) processing: Option<u8>,
    /// Requests (a bit for each amount) that nobody waits for any more and that may still be executed.
    pub(crate) in_flight: u8,
    /// It has given a signed `F` to this id.
    pub(crate) said_failed: bool,
}

/// What was published about an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub(crate) captured: bool,
    /// By the gateway's signed verdict, since the last replay of the same id.
    pub(crate) failed: bool,
}

/// What may still go wrong, and how often operators act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// A process dies.
    pub(crate) crashes: u8,
    /// A session with the broker is lost; its worker lives on.
    pub(crate) cuts: u8,
    /// A worker stands still until its lease is over.
    pub(crate) pauses: u8,
    /// Redis does not answer once.
    pub(crate) aways: u8,
    /// Redis forgets everything.
    pub(crate) losses: u8,
    /// A letter is taken up.
    pub(crate) acts: u8,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) queue: Vec<Message>,
    pub(crate) dead: Vec<Message>,
    pub(crate) slots: [Option<Job>; SLOTS],
    pub(crate) operators: [Option<(Message, Act)>; OPERATORS],
    pub(crate) later: [Option<Later>; LATER],
    pub(crate) redis: Redis,
    pub(crate) gateway: [Account; IDS],
    pub(crate) told: [Told; IDS],
    /// The copies (a bit for each) about which a result was published.
    pub(crate) ended: u8,
    /// By payment: the id whose capture was sent and that is neither resolved nor past its hold.
    pub(crate) doubt: [Option<u8>; 2],
    pub(crate) budget: Budget,
    /// `expiresAt` has passed.
    pub(crate) past_expiry: bool,
    /// `retry.max_age` has passed.
    pub(crate) is_old: bool,
    /// Redis has forgotten everything at least once.
    pub(crate) forgot: bool,
    /// For want of time an id was given up as never sent, and it may have captured.
    pub(crate) lied: bool,
}

/// What the model must notice when it is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The ack comes before the publish.
    AckFirst,
    /// A release deletes the lease without looking at the token.
    ReleaseAnyLease,
    /// An `F` that may precede the id is believed on a sent id.
    BelieveEveryF,
    /// A retry does not carry that the id was sent, and the lease leaves no mark.
    ForgetSent,
    /// A fresh id replaces one in doubt, and nobody inquires.
    FreshWithoutInquiry,
    /// An acquisition does not look at the hold.
    NoHold,
    /// A signed refusal of class `access` ends its job and is not recorded.
    ForgetAccess,
    /// A job that waited for the lease says when it gives up what it last heard of its mark.
    StaleMark,
    /// Only the child of an id is looked for, and only by the operator's command.
    OnlyTheChild,
    /// A replayed id that was sent is inquired about only in its first attempt, and goes though nobody answers.
    OneInquiry,
    /// An `F` that only headers tell of closes an id.
    TrustHeaders,
    /// A fresh id is posted without an inquiry, and its forebears are looked for nowhere.
    NoForebears,
}

/// What happens when a fresh id replaces its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// The parent is inquired about, and no more.
    Inquires,
    /// And that under the parent's lease, which is given back with the parent recorded as failed.
    Closes,
}

/// A configuration: what is published at the beginning, and the bounds.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// The jobs by id and amount; each is a copy of its own.
    pub(crate) jobs: &'static [(u8, u8)],
    /// The payment of each id.
    pub(crate) payments: [u8; 3],
    /// How many jobs each worker has in hand at most.
    pub(crate) prefetch: [usize; 2],
    pub(crate) delays: u8,
    pub(crate) budget: Budget,
    pub(crate) operators: usize,
    /// What the gateway may say besides nothing at all.
    pub(crate) says: &'static [Said],
    /// A request whose caller gave up may be executed later.
    pub(crate) in_flight: bool,
    /// So late, even, that an inquiry in between does not see it.
    pub(crate) late: bool,
    /// An inquiry may stay unanswered.
    pub(crate) deaf: bool,
    /// The broker's delivery limit.
    pub(crate) returns_max: Option<u8>,
    pub(crate) expires: bool,
    pub(crate) ages: bool,
    /// The publisher's headers say that the id was sent, and that the gateway refused it.
    pub(crate) forged: bool,
    /// The classes in which the jobs lie as dead letters at the beginning, each sent and refused before the gateway looked
    /// at its id; empty: they are in the queue.
    pub(crate) dead: &'static [Class],
    pub(crate) replay: Replay,
    pub(crate) mutation: Option<Mutation>,
    /// It is small enough to look whether an end can be reached from every state.
    pub(crate) ends: bool,
    /// Which of the examples must be found.
    pub(crate) reaches: &'static [&'static str],
    /// Which of the properties must be found broken.
    pub(crate) breaks: &'static [&'static str],
}

impl Setup {
    pub(crate) fn payment(&self, id: u8) -> u8 {
        self.payments[usize::from(id % 3)]
    }

    pub(crate) fn known(&self, state: &State, message: &Message, marker: Option<Tells>) -> Known {
        let past_expiry = self.expires && message.expires && state.past_expiry;
        let Message { mut carried, amount, .. } = *message;
        let mut marker = marker;
        if self.mutation == Some(Mutation::OneInquiry) {
            let is_first = carried.sent && carried.replays > 0 && carried.attempts == 0;
            marker = marker.or_else(|| carried.sent.then(Tells::default));
            carried.replays = u8::from(is_first);
        }
        let looks_not = [Mutation::NoForebears, Mutation::FreshWithoutInquiry];
        if self.mutation.is_some_and(|is| looks_not.contains(&is)) && !carried.sent {
            carried.replays = 0;
        }
        if self.mutation == Some(Mutation::TrustHeaders) && carried.word == DENIED {
            let refused = Some((amount, DENIED));
            marker = Some(Tells { refused, ..marker.unwrap_or_default() });
        }
        Known { carried, marker, amount, past_expiry }
    }

    /// `src/lease/claim.rs::Claim::of`, with the token of a slot.
    pub(crate) fn claim(&self, state: &State, message: &Message, token: Token) -> Claim {
        use capture_worker::domain::judge::Call;
        // `src/worker/call.rs::posts_at_once`.
        let posts = self.known(state, message, None).first_call() == Call::Post;
        let Message { id, amount, .. } = *message;
        Claim { payment: self.payment(id), token, id, amount, posts }
    }
}

/// The worker that a slot belongs to.
pub(crate) const fn worker_of(slot: usize) -> usize {
    slot / 2
}

fn nth(first: u8, n: usize) -> Token {
    Token(first + u8::try_from(n).unwrap_or(0))
}

/// The token of the acquisition in a slot.
pub(crate) fn token_of_slot(slot: usize) -> Token {
    nth(1, slot)
}

/// The token of an operator's acquisition.
pub(crate) fn token_of_operator(operator: usize) -> Token {
    nth(5, operator)
}

/// The token of an acquisition that a background call gives up.
pub(crate) fn token_of_later(later: usize) -> Token {
    nth(7, later)
}

impl State {
    pub(crate) fn enqueue(&mut self, message: Message) {
        let place = self.queue.partition_point(|other| *other < message);
        self.queue.insert(place, message);
    }

    pub(crate) fn bury(&mut self, message: Message) {
        let place = self.dead.partition_point(|other| *other < message);
        self.dead.insert(place, message);
    }

    /// An acquisition is over, or goes on under another name: only whether a token is one's own matters.
    pub(crate) fn rename(&mut self, from: Token, to: Token) {
        let change = |token: &mut Token| {
            if *token == from {
                *token = to;
            }
        };
        for payment in &mut self.redis.payments {
            payment.lease.iter_mut().for_each(change);
            payment.hold.iter_mut().for_each(|(token, _)| change(token));
            payment.line.iter_mut().for_each(change);
        }
        for keys in &mut self.redis.keys {
            keys.mark.iter_mut().for_each(|mark| change(&mut mark.by));
        }
    }

    pub(crate) fn is_over(&mut self, token: Token) {
        self.rename(token, NOBODY);
    }

    /// The capture calls under way, with their ids and leases.
    pub(crate) fn posting(&self) -> impl Iterator<Item = (u8, Lease)> {
        self.slots.iter().flatten().filter_map(|job| match job.step {
            Step::Posts(lease) => Some((job.message.id, lease)),
            _ => None,
        })
    }

    /// Whether this id has captured, or may by a request that is under way or in process.
    pub(crate) fn may_have_captured(&self, id: u8) -> bool {
        let account = &self.gateway[usize::from(id)];
        match account.verdict {
            Some((fate, _)) => fate == Fate::Captured,
            None => {
                account.processing.is_some()
                    || account.in_flight != 0
                    || self.posting().any(|(posted, _)| posted == id)
            }
        }
    }

    pub(crate) fn has_captured(&self, id: u8) -> bool {
        matches!(self.gateway[usize::from(id)].verdict, Some((Fate::Captured, _)))
    }

    /// Nothing is under way any more.
    pub(crate) fn is_ended(&self) -> bool {
        self.queue.is_empty()
            && self.slots.iter().all(Option::is_none)
            && self.operators.iter().all(Option::is_none)
    }
}

/// The fresh id of an id, for the ids that the model has: `x-capture-parent`; one parent has one child.
pub(crate) const fn child_of(id: u8) -> Option<u8> {
    if id < 6 { Some(id + 3) } else { None }
}
