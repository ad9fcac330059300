//! The RabbitMQ client: sessions, deliveries that must be settled, and publishes that the broker
//! confirms before anything is acked. Only this module names `lapin`, and only this module acks.
//!
//! How it handles the hazards of AMQP:
//!
//! - One task publishes in batches and judges each batch as a whole (`publisher`).
//! - Any error ends the session as a whole. There is no automatic recovery, and a delivery of a
//!   lost session is never started (`session`, `intake`).
//! - Confirms have a time-out, which does not apply while the broker blocks publishing.
//! - Consuming and publishing use one connection each.

mod acks;
mod address;
mod connect;
mod delivery;
mod depths;
mod headers;
mod intake;
mod look;
mod missing;
mod publisher;
mod refusals;
mod results;
mod rights;
mod session;
mod submit;
mod topology;

pub use self::{
    address::without_credentials,
    delivery::{Delivery, HELD_MAX, SessionLost, Settled},
    depths::{Depth, DepthsError},
    intake::{Intake, Taken},
    look::{Browsed, Found, Look, LookError},
    missing::Missing,
    publisher::{OnPublish, PublishError},
    refusals::Refusal,
    results::Results,
    rights::RightsError,
    session::{BrokerOptions, OpenError, Session},
    topology::{DELAY_MS_MAX, DELIVERY_LIMIT, Exchange, Names, Topology, TopologyError},
};
