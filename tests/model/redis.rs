//! The lease scripts as functions. Each method of [`Redis`] is one atomic step and mirrors the
//! script of its name in `src/lease/scripts`. There are no times: the expiry of a key is a separate
//! step. `tests/it/scripts.rs` compares every reply and every key with the scripts on a real
//! server.

/// The number of payments. [`IDS`] is the number of ids.
pub(crate) const PAYMENTS: usize = 2;
/// Ids 0 to 2 are the publisher's; 3 to 5 are the fresh ids of those, 6 to 8 the fresh ids of
/// these.
pub(crate) const IDS: usize = 9;

/// The token of an acquisition. One that has ended has the token [`NOBODY`], as in `announce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) u8);

/// The token of an acquisition that has ended.
pub(crate) const NOBODY: Token = Token(0);

/// A recorded outcome: captured, failed with a code of the gateway (an index), or recorded as
/// failed because there is no capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FinalOutcome {
    Captured,
    Failed(u8),
    Closed(u8),
}

/// A record: the amount and the outcome.
pub(crate) type Record = (u8, FinalOutcome);

/// The keys of one payment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Payment {
    pub(crate) lease: Option<Token>,
    pub(crate) hold: Option<(Token, u8)>,
    pub(crate) line: Vec<Token>,
}

/// A sent marker: the acquisition that wrote it first, and what the gateway has signed since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    pub(crate) by: Token,
    pub(crate) tells: Tells,
}

/// The content of a sent marker: `src/domain/capture/judge.rs::SentMarker`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tells {
    pub(crate) denied_at: Option<u8>,
    /// The amount and the code of a signed `F` that may not be about the capture.
    pub(crate) refused: Option<(u8, u8)>,
}

/// The keys of one id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Keys {
    pub(crate) mark: Option<Mark>,
    pub(crate) known: Option<Record>,
    pub(crate) replaced: Option<Record>,
}

/// All keys of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    pub(crate) payments: [Payment; PAYMENTS],
    pub(crate) keys: [Keys; IDS],
}

/// The arguments of an acquisition: `src/lease/claim.rs::Claim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) payment: u8,
    pub(crate) token: Token,
    pub(crate) id: u8,
    pub(crate) amount: u8,
    pub(crate) posts: bool,
}

/// The reply of `acquire` in `payment.lua`: `src/lease/results.rs::Acquired`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Known(FinalOutcome),
    Replaced,
    Held { marked: bool, place: Option<usize> },
    Hold { marked: bool },
    Taken { marker: Option<Tells>, hold_was_there: bool },
}

/// The reply of `renew.lua`: `src/lease/results.rs::Renewed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Renewed {
    Kept,
    Lost,
    Recorded,
}

/// What a release does with lease, in-doubt block and sent marker:
/// `src/domain/capture/outcome.rs::Release`, and `src/lease/leases.rs::Leases::replace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Final(FinalOutcome),
    Close(FinalOutcome),
    Replace(FinalOutcome),
    Replaced(FinalOutcome),
    End,
    Keep { refused: Option<u8> },
    Back,
    Forget,
}

const fn rank(final_outcome: FinalOutcome) -> u8 {
    match final_outcome {
        FinalOutcome::Closed(_) => 1,
        FinalOutcome::Failed(_) => 2,
        FinalOutcome::Captured => 3,
    }
}

impl Redis {
    fn at(&mut self, claim: Claim) -> &mut Payment {
        &mut self.payments[usize::from(claim.payment)]
    }

    fn of(&mut self, claim: Claim) -> &mut Keys {
        &mut self.keys[usize::from(claim.id)]
    }

    fn has_lease(&mut self, claim: Claim) -> bool {
        self.at(claim).lease == Some(claim.token)
    }

    /// Mirrors the function `payment.lua::deciding_record`.
    fn on_record(&mut self, claim: Claim) -> Option<FinalOutcome> {
        let Keys { known, replaced, .. } = *self.of(claim);
        let same = |record: &Record| record.0 == claim.amount;
        known.filter(same).or_else(|| replaced.filter(same)).map(|(_, final_outcome)| final_outcome)
    }

    /// Mirrors the function `payment.lua::pass_on`.
    fn pass_on(&mut self, claim: Claim) {
        let payment = self.at(claim);
        payment.lease = if payment.line.is_empty() { None } else { Some(payment.line.remove(0)) };
    }

    fn no_longer_waits(&mut self, claim: Claim) {
        let line = &mut self.at(claim).line;
        if let Some(place) = line.iter().position(|token| *token == claim.token) {
            line.remove(place);
        }
    }

    /// Mirrors the function `payment.lua::leave`.
    fn leave(&mut self, claim: Claim) {
        self.no_longer_waits(claim);
        if self.has_lease(claim) {
            self.pass_on(claim);
        }
    }

    /// Mirrors the function `payment.lua::end_block_of`.
    fn end_hold(&mut self, claim: Claim) {
        let hold = &mut self.at(claim).hold;
        *hold = hold.filter(|(_, id)| *id != claim.id);
    }

    /// Mirrors the function `payment.lua::record_intent`.
    fn record_intent(&mut self, claim: Claim, denied_at: Option<u8>) {
        let mine = (claim.token, claim.id);
        let hold = &mut self.at(claim).hold;
        let holds = if hold.is_some_and(|hold| hold != mine) { NOBODY } else { claim.token };
        *hold = Some((holds, claim.id));
        let mark = &mut self.of(claim).mark;
        let is_anothers = mark.is_some_and(|mark| mark.by != claim.token);
        let by = if is_anothers { NOBODY } else { claim.token };
        let before = mark.map(|mark| mark.tells).unwrap_or_default();
        let tells = Tells { denied_at: denied_at.or(before.denied_at), ..before };
        *mark = Some(Mark { by, tells });
    }

    /// Mirrors the function `payment.lua::acquire`.
    fn take(&mut self, claim: Claim, waits: bool) -> Asked {
        let Keys { mark, known, replaced } = *self.of(claim);
        let record = self.on_record(claim);
        if record.is_some() || replaced.is_some() {
            self.leave(claim);
            self.end_hold(claim);
            return record.map_or(Asked::Replaced, Asked::Known);
        }
        let others = mark.filter(|mark| mark.by != claim.token).map(|mark| mark.tells);
        let marker = others.or_else(|| known.map(|_| Tells::default()));
        let marked = marker.is_some();
        if self.at(claim).lease.is_some_and(|holder| holder != claim.token) {
            let line = &mut self.at(claim).line;
            let mut place = line.iter().position(|token| *token == claim.token);
            if waits && place.is_none() {
                place = Some(line.len());
                line.push(claim.token);
            }
            return Asked::Held { marked, place };
        }
        let hold = self.at(claim).hold;
        if hold.is_some_and(|(_, id)| id != claim.id) {
            self.leave(claim);
            return Asked::Hold { marked };
        }
        self.no_longer_waits(claim);
        self.at(claim).lease = Some(claim.token);
        if claim.posts {
            self.record_intent(claim, None);
        }
        let hold_was_there = hold.is_some_and(|(token, _)| token != claim.token);
        Asked::Taken { marker, hold_was_there }
    }

    /// Rolls back what an acquisition wrote.
    fn take_back(&mut self, claim: Claim) {
        if self.at(claim).hold == Some((claim.token, claim.id)) {
            self.at(claim).hold = None;
        }
        let mark = &mut self.of(claim).mark;
        *mark = mark.filter(|mark| mark.by != claim.token);
    }

    /// Mirrors the function `payment.lua::record`.
    fn record(&mut self, claim: Claim, mode: Mode) -> (bool, Option<Record>) {
        let mine = self.has_lease(claim);
        let Keys { known, replaced, mark } = *self.of(claim);
        let is_captured = matches!(known, Some((_, FinalOutcome::Captured)));
        match mode {
            Mode::Final(final_outcome)
            | Mode::Close(final_outcome)
            | Mode::Replace(final_outcome)
                if mine || matches!(mode, Mode::Final(_)) =>
            {
                let before = known.map_or(0, |(_, before)| rank(before));
                if !is_captured && rank(final_outcome) >= before {
                    self.of(claim).known = Some((claim.amount, final_outcome));
                }
                self.end_hold(claim);
            }
            Mode::End if mine => self.end_hold(claim),
            Mode::Keep { refused } => {
                if let Some(word) = refused {
                    let denied_at = mark.and_then(|mark| mark.tells.denied_at);
                    let tells = Tells { denied_at, refused: Some((claim.amount, word)) };
                    let by = mark.map_or(claim.token, |mark| mark.by);
                    self.of(claim).mark = Some(Mark { by, tells });
                }
                if !mine && matches!(known, Some((_, FinalOutcome::Closed(_)))) {
                    self.of(claim).known = None;
                }
            }
            Mode::Back if mine => self.take_back(claim),
            Mode::Forget => self.take_back(claim),
            Mode::Close(_) | Mode::Replace(_) | Mode::Replaced(_) | Mode::End | Mode::Back => {}
            Mode::Final(_) => unreachable!("a final outcome is recorded without the lease too"),
        }
        let is_recorded = self.on_record(claim).is_some();
        let replaces = match mode {
            Mode::Replaced(final_outcome) if is_recorded => Some(final_outcome),
            Mode::Replace(final_outcome) if mine => Some(final_outcome),
            _ => None,
        };
        if let (Some(final_outcome), false) = (replaces, is_captured) {
            self.of(claim).replaced = Some((claim.amount, final_outcome));
        }
        let is_ours = |record: &Record| record.0 == claim.amount;
        let found = known.filter(|record| is_ours(record) || is_captured).or(replaced);
        let is_final = matches!(known, Some((_, FinalOutcome::Captured | FinalOutcome::Failed(_))));
        let is_over =
            |(_, final_outcome)| mine || !matches!(final_outcome, FinalOutcome::Closed(_));
        if is_final || found.filter(is_ours).is_some_and(is_over) {
            self.end_hold(claim);
        }
        (mine, found)
    }

    /// Mirrors the script `acquire.lua`.
    pub(crate) fn acquire(&mut self, claim: Claim, waits: bool) -> Asked {
        self.take(claim, waits)
    }

    /// Mirrors the script `renew.lua`.
    pub(crate) fn renew(&mut self, claim: Claim, posts: bool, denied_at: Option<u8>) -> Renewed {
        if !self.has_lease(claim) {
            return Renewed::Lost;
        }
        if self.of(claim).replaced.is_some() || self.on_record(claim).is_some() {
            return Renewed::Recorded;
        }
        if posts {
            self.record_intent(claim, denied_at);
        }
        Renewed::Kept
    }

    /// Mirrors the script `release.lua`.
    pub(crate) fn release(&mut self, claim: Claim, mode: Mode) -> (bool, Option<Record>) {
        let released = self.record(claim, mode);
        self.leave(claim);
        released
    }

    /// Mirrors the script `hand_over.lua`.
    pub(crate) fn hand_over(
        &mut self,
        claim: Claim,
        mode: Mode,
        next: Claim,
        stays: bool,
    ) -> ((bool, Option<Record>), Asked) {
        let (mine, found) = self.record(claim, mode);
        let stays = mine && (stays || self.at(claim).line.is_empty());
        if stays {
            self.at(claim).lease = None;
        } else if mine {
            self.pass_on(claim);
        }
        let taken = self.take(next, true);
        if stays && !matches!(taken, Asked::Taken { .. }) {
            self.pass_on(claim);
        }
        ((mine, found), taken)
    }
}
