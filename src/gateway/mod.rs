//! The gateway's protocol: signing, bodies, and the client that turns a call into a reply. The only place that names
//! `reqwest`; it knows what a reply says, not what it means.

mod client;
mod flaw;
mod key_text;
mod signer;
pub mod signing;
mod wire;

pub(crate) use self::client::NOT_SIGNED;
pub use self::{
    client::{ClientError, Gateway, GatewayOptions, SignedCall, TriedOut},
    flaw::Flaw,
};
