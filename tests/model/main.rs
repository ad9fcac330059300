//! A model of how jobs are leased, captured, settled and replayed, searched exhaustively. It has
//! the broker, Redis, the gateway, two workers and two operators, with every order of their steps
//! and a crash between any two steps.
//!
//! `cargo test --test model` searches the small configurations of [`setups`]. `CAPTURE_MODEL=big`
//! adds the big ones; any other value adds those whose name contains it (`--release` is faster).
//! `-- --nocapture` prints the number of states of each.
//!
//! The program itself makes the decisions: [`domain`] calls
//! `judge::{first_call, judge_capture, judge_inquiry}`, `settle::settle` and `Outcome::release`.
//! The rest is mirrored, and each function names what it mirrors: [`redis`] the lease scripts
//! (`tests/it/scripts.rs` compares them), [`worker`] and [`settle`] the pipeline, [`gateway`] the
//! sandbox, [`operator`] an operator's replay. [`model`] has the rules that must always hold.
//!
//! Assumptions: a lease does not expire between the check of its remaining time and the departure
//! of the request. Unless a configuration says otherwise, the gateway replies to an inquiry after
//! it has processed the requests of its id in progress. Sent markers and recorded outcomes live
//! long enough (`lease.remember`).

mod big;
mod domain;
mod ended;
mod gateway;
mod model;
mod operator;
mod properties;
mod redis;
mod replaying;
mod replies;
mod settle;
mod setups;
mod state;
mod symmetry;
mod worker;

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{
    big::BIG,
    setups::{LIMITS, MUTATIONS, SMALL},
    state::{Setup, State},
};

/// Searches a configuration and returns a summary for people.
fn search(setup: &Setup) -> String {
    let began = Instant::now();
    let broken: BTreeSet<&str> = setup.breaks.iter().copied().collect();
    let expected: BTreeSet<&str> = broken.iter().chain(setup.reaches).copied().collect();
    let search = setup.clone().checker().threads(2);
    let checker = if broken.is_empty() {
        search.spawn_bfs().join()
    } else {
        search.finish_when(HasDiscoveries::AllOf(broken.clone())).spawn_bfs().join()
    };
    for (what, path) in checker.discoveries() {
        let path = || {
            path.into_actions().iter().map(|action| format!("\n  {action:?}")).collect::<String>()
        };
        let found = expected.contains(what) || !broken.is_empty();
        assert!(found, "{}: these steps break \"{what}\":{}", setup.name, path());
    }
    for what in expected {
        assert!(checker.discovery(what).is_some(), "{}: \"{what}\" never occurs", setup.name);
    }
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    let depth = checker.max_depth();
    format!(
        "{}: {states} states, {steps} steps, depth {depth}, {:.1?}",
        setup.name,
        began.elapsed()
    )
}

/// The number of states of a configuration, and the number of states from which no end can be
/// reached.
fn without_end(setup: &Setup) -> (usize, usize) {
    let mut states = setup.init_states();
    let mut places: HashMap<State, usize> = states.iter().cloned().zip(0..).collect();
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut at = 0;
    while let Some(state) = states.get(at).cloned() {
        for next in setup.next_states(&state) {
            let place = *places.entry(next).or_insert_with_key(|next| {
                states.push(next.clone());
                before.push(Vec::new());
                states.len() - 1
            });
            before[place].push(at);
        }
        at += 1;
    }
    let mut ends: Vec<bool> = states.iter().map(State::is_ended).collect();
    let mut open: Vec<usize> = (0..ends.len()).filter(|place| ends[*place]).collect();
    while let Some(place) = open.pop() {
        for earlier in &before[place] {
            if !std::mem::replace(&mut ends[*earlier], true) {
                open.push(*earlier);
            }
        }
    }
    (ends.len(), ends.iter().filter(|ends| !**ends).count())
}

#[test]
fn an_end_can_be_reached_from_every_state() {
    for setup in SMALL.iter().filter(|setup| setup.ends) {
        let (all, without_end) = without_end(setup);
        println!("{}: {all} states", setup.name);
        assert_eq!(without_end, 0, "{}", setup.name);
    }
}

#[test]
fn every_property_holds_in_every_state() {
    for setup in SMALL {
        println!("{}", search(setup));
    }
}

#[test]
fn every_property_holds_within_bigger_bounds() {
    let Ok(part) = std::env::var("CAPTURE_MODEL") else { return };
    for setup in BIG.iter().filter(|setup| setup.name.contains(&part)) {
        println!("{}", search(setup));
    }
}

#[test]
fn every_mutation_of_the_protocol_is_detected() {
    for setup in MUTATIONS {
        println!("{}", search(setup));
    }
}

#[test]
fn every_known_limit_of_the_protocol_is_found() {
    for setup in LIMITS {
        println!("{}", search(setup));
    }
}
