//! The gateway's protocol: signatures, bodies, and the client that turns a call into a reply. Only
//! this module uses `reqwest`. It reports what a reply contains, and does not judge what it means.

mod client;
mod flaw;
mod key_error;
mod key_text;
pub mod signing;
mod signing_pool;
mod wire;

pub(crate) use self::client::NOT_SIGNED;
pub use self::{
    client::{ClientError, Gateway, GatewayOptions, SignedCall, TriedOut},
    flaw::Flaw,
};
