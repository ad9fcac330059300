//! AMQP headers and properties of jobs, results and dead letters. They are read strictly, and
//! copied to the next message without those that the broker would act on.

mod dead_letter;
mod job;
mod json;
mod names;
mod properties;
mod republish;
mod values;

pub(super) use self::{
    dead_letter::read_dead_letter,
    job::{
        born_ms, names_a_death_of_ours, put_refused_result, put_trace, read_history, read_job,
        refused_result, trace,
    },
    json::to_json,
    properties::{carry, of_audit, of_job, of_result, replayed},
    republish::{delivery_count, republished},
    values::table_size,
};

#[cfg(test)]
mod tests;
