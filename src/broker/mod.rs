//! The RabbitMQ client: sessions, deliveries that must be settled, and publishes that the broker
//! confirms before anything is acked. Only this module names `lapin`, and only this module acks.
//!
//! How it handles the hazards of AMQP:
//!
//! - One task publishes in batches and judges each batch as a whole (`publish`).
//! - Any error ends the session as a whole. There is no automatic recovery, and a delivery of a
//!   lost session is never started (`session`, `consumer`).
//! - Confirms have a time-out, which does not apply while the broker blocks publishing.
//! - Consuming and publishing use one connection each.

mod acks;
mod address;
mod browse;
mod connect;
mod consumer;
mod delivery;
mod depths;
mod headers;
mod missing;
mod names;
mod options;
mod permissions;
mod probe;
mod publish;
mod response;
mod results;
mod session;
mod session_state;
mod submit;
mod topology;

pub use self::{
    address::{is_valid_url, without_credentials},
    browse::{BrowseError, BrowsedMessage, BrowsedQueue, Browser},
    consumer::{Consumer, ConsumerEvent},
    delivery::{Delivery, HELD_MAX, SessionLost, SettleResult},
    depths::{Depth, DepthsError},
    missing::MissingQueues,
    names::{Exchange, Names},
    options::{BrokerOptions, OpenError},
    probe::PermissionsError,
    publish::{OnPublish, PublishError, PublishRefusal},
    response::AmqpError,
    results::Results,
    session::Session,
    topology::{DELAY_MS_MAX, DELIVERY_LIMIT, TopologyError, TopologyMode},
};
