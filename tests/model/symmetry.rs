//! Symmetry reduction: states that differ only in the names of workers, operators or equal copies
//! are represented by one of them.

use crate::{
    redis::Token,
    state::{Message, Setup, State, token_of_operator, token_of_slot},
};

impl Setup {
    /// The state that represents this one.
    pub(crate) fn canonical(&self, mut state: State) -> State {
        if self.prefetch[0] == self.prefetch[1] && state.slots[2..] < state.slots[..2] {
            state = swap_workers(state);
        }
        if self.operators == 2 && state.operators[1] < state.operators[0] {
            state = swap_operators(state);
        }
        if let [one, other] = self.jobs
            && one == other
        {
            let swapped = swap_copies(state.clone());
            let of = |state: &State| {
                (state.slots, state.operators, state.ended, state.queue.clone(), state.dead.clone())
            };
            if of(&swapped) < of(&state) {
                state = swapped;
            }
        }
        state
    }
}

fn swap_tokens(state: &mut State, pairs: &[(Token, Token)]) {
    const ASIDE: Token = Token(u8::MAX);
    for (one, other) in pairs {
        state.rename(*one, ASIDE);
        state.rename(*other, *one);
        state.rename(ASIDE, *other);
    }
}

fn swap_workers(mut state: State) -> State {
    state.slots.swap(0, 2);
    state.slots.swap(1, 3);
    let pairs = [0, 1].map(|slot| (token_of_slot(slot), token_of_slot(slot + 2)));
    swap_tokens(&mut state, &pairs);
    for later in state.later.iter_mut().flatten() {
        later.worker = 1 - later.worker;
    }
    state
}

fn swap_operators(mut state: State) -> State {
    state.operators.swap(0, 1);
    swap_tokens(&mut state, &[(token_of_operator(0), token_of_operator(1))]);
    state
}

fn swap_copies(mut state: State) -> State {
    let swap = |message: &mut Message| message.copy = 1 - message.copy;
    state.queue.iter_mut().for_each(swap);
    state.dead.iter_mut().for_each(swap);
    state.slots.iter_mut().flatten().for_each(|job| swap(&mut job.message));
    state.operators.iter_mut().flatten().for_each(|(dead_letter, _)| swap(dead_letter));
    state.ended = (state.ended & 1) << 1 | state.ended >> 1;
    state.queue.sort_unstable();
    state.dead.sort_unstable();
    state
}
