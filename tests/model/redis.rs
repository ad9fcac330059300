//! The lease scripts as functions: each method of [`Redis`] is one atomic step and mirrors the script of its name in
//! `src/lease`. Times are left out: that a key expires is somebody else's act. `tests/it/scripts.rs` compares every
//! answer and every key with the scripts on a real server.

/// How many payments and ids there are keys for.
pub(crate) const PAYMENTS: usize = 2;
/// Ids 0 to 2 are the publisher's; 3 to 5 are the fresh ids of those.
pub(crate) const IDS: usize = 6;

/// The token of an acquisition; one that is over is [`NOBODY`]'s, as in `announce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) u8);

/// Nobody's token.
pub(crate) const NOBODY: Token = Token(0);

/// A known outcome: captured, or failed with a word of the gateway (an index).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fate {
    Captured,
    Failed(u8),
}

/// The keys of a payment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Payment {
    pub(crate) lease: Option<Token>,
    pub(crate) hold: Option<(Token, u8)>,
    pub(crate) line: Vec<Token>,
}

/// The keys of an id: its mark, and its outcome with the amount that it is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Keys {
    pub(crate) mark: Option<Token>,
    pub(crate) known: Option<(u8, Fate)>,
}

/// All keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    pub(crate) payments: [Payment; PAYMENTS],
    pub(crate) keys: [Keys; IDS],
}

/// What an acquisition asks for: `src/lease/claim.rs::Claim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) payment: u8,
    pub(crate) token: Token,
    pub(crate) id: u8,
    pub(crate) amount: u8,
    pub(crate) posts: bool,
}

/// What `take` in `common.lua` says: `src/lease/mod.rs::Acquired`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    Known(Fate),
    Held { marked: bool, place: Option<usize> },
    Hold { marked: bool },
    Taken { marked: bool, hold_was_there: bool },
}

/// What becomes of lease, hold and mark: `src/domain/outcome.rs::Release`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Final(Fate),
    Close(Fate),
    End,
    Keep,
    Back,
    Forget,
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

    /// `common.lua::pass_on`.
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

    /// `common.lua::leave`.
    fn leave(&mut self, claim: Claim) {
        self.no_longer_waits(claim);
        if self.has_lease(claim) {
            self.pass_on(claim);
        }
    }

    /// `common.lua::announce`.
    fn announce(&mut self, claim: Claim) {
        let mine = (claim.token, claim.id);
        let hold = &mut self.at(claim).hold;
        let holds = if hold.is_some_and(|hold| hold != mine) { NOBODY } else { claim.token };
        *hold = Some((holds, claim.id));
        let mark = &mut self.of(claim).mark;
        let marks = if mark.is_some_and(|mark| mark != claim.token) { NOBODY } else { claim.token };
        *mark = Some(marks);
    }

    /// `common.lua::take`.
    fn take(&mut self, claim: Claim, waits: bool) -> Asked {
        let Keys { mark, known } = *self.of(claim);
        if let Some((amount, fate)) = known
            && amount == claim.amount
        {
            self.leave(claim);
            return Asked::Known(fate);
        }
        let marked = mark.is_some_and(|mark| mark != claim.token) || known.is_some();
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
            self.announce(claim);
        }
        let hold_was_there = hold.is_some_and(|(token, _)| token != claim.token);
        Asked::Taken { marked, hold_was_there }
    }

    /// `common.lua::record`.
    fn record(&mut self, claim: Claim, mode: Mode) -> bool {
        let mine = self.has_lease(claim);
        let hold = self.at(claim).hold;
        let held_by_id = hold.is_some_and(|(_, id)| id == claim.id);
        match mode {
            Mode::Close(_) if !mine => {}
            Mode::Final(fate) | Mode::Close(fate) => {
                let known = &mut self.of(claim).known;
                if !matches!(known, Some((_, Fate::Captured))) {
                    *known = Some((claim.amount, fate));
                }
                if held_by_id {
                    self.at(claim).hold = None;
                }
            }
            Mode::End if mine => {
                if held_by_id {
                    self.at(claim).hold = None;
                }
            }
            Mode::Back if !mine => {}
            Mode::Back | Mode::Forget => {
                if hold == Some((claim.token, claim.id)) {
                    self.at(claim).hold = None;
                }
                if self.of(claim).mark == Some(claim.token) {
                    self.of(claim).mark = None;
                }
            }
            Mode::End | Mode::Keep => {}
        }
        mine
    }

    /// `acquire.lua`.
    pub(crate) fn acquire(&mut self, claim: Claim, waits: bool) -> Asked {
        self.take(claim, waits)
    }

    /// `renew.lua`.
    pub(crate) fn renew(&mut self, claim: Claim, posts: bool) -> bool {
        let mine = self.has_lease(claim);
        if mine && posts {
            self.announce(claim);
        }
        mine
    }

    /// `release.lua`.
    pub(crate) fn release(&mut self, claim: Claim, mode: Mode) -> bool {
        let mine = self.record(claim, mode);
        self.leave(claim);
        mine
    }

    /// `hand_over.lua`.
    pub(crate) fn hand_over(
        &mut self,
        claim: Claim,
        mode: Mode,
        next: Claim,
        stays: bool,
    ) -> (bool, Asked) {
        let mine = self.record(claim, mode);
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
        (mine, taken)
    }
}
