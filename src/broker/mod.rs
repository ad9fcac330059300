//! RabbitMQ: a session that is rebuilt as a whole on any error, deliveries with the duty to settle them, and publishes
//! that are confirmed before anything is acked. The only place that names `lapin`, and the only one that acks.
//!
//! How its hazards are met: one task publishes in batches and judges them whole (`publisher`); no auto-recovery, and
//! no delivery of a session that is lost is started (`session`, `intake`); confirms have a time-out that a blocked
//! broker does not trip; consuming and publishing have a connection each.

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
