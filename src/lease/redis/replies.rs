//! The replies of the scripts. Each is a table: a tag, then the facts of that tag (see
//! `payment.lua`).

use redis::{FromRedisValue, ParsingError, Value};

use crate::lease::Renewed;

/// The reply of the function `acquire`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lease) enum AcquireReply {
    Taken {
        /// The text of the sent marker that an earlier acquisition wrote.
        marker: Option<String>,
        /// The milliseconds that the in-doubt block had left.
        block_left_ms: Option<i64>,
    },
    /// The recorded outcome of the id.
    Recorded(String),
    Replaced,
    Held {
        marked: bool,
        position: Option<u32>,
    },
    Blocked {
        marked: bool,
    },
}

/// The reply of the function `released`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lease) struct ReleaseReply {
    /// Whether this acquisition still had the lease.
    pub(in crate::lease) kept: bool,
    /// The outcome that was recorded before.
    pub(in crate::lease) found: Option<String>,
}

/// The reply of `renew.lua`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lease) struct RenewReply(pub(in crate::lease) Renewed);

/// The facts after the tag of a reply.
struct Facts(std::vec::IntoIter<Value>);

impl Facts {
    /// The tag of a reply, and its facts.
    fn tagged(reply: Value) -> Result<(String, Self), ParsingError> {
        let mut facts = Self(Vec::from_redis_value(reply)?.into_iter());
        Ok((facts.next()?, facts))
    }

    fn next<T: FromRedisValue>(&mut self) -> Result<T, ParsingError> {
        T::from_redis_value(self.0.next().unwrap_or(Value::Nil))
    }
}

fn unexpected<T>(tag: &str) -> Result<T, ParsingError> {
    Err(format!("a lease script returned the unknown tag `{tag}`").into())
}

impl FromRedisValue for AcquireReply {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let (tag, mut facts) = Facts::tagged(reply)?;
        Ok(match tag.as_str() {
            "taken" => Self::Taken { marker: facts.next()?, block_left_ms: facts.next()? },
            "recorded" => Self::Recorded(facts.next()?),
            "replaced" => Self::Replaced,
            "held" => Self::Held { marked: facts.next()?, position: facts.next()? },
            "blocked" => Self::Blocked { marked: facts.next()? },
            _ => return unexpected(&tag),
        })
    }
}

impl FromRedisValue for ReleaseReply {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let (tag, mut facts) = Facts::tagged(reply)?;
        let kept = match tag.as_str() {
            "released" => true,
            "lost" => false,
            _ => return unexpected(&tag),
        };
        Ok(Self { kept, found: facts.next()? })
    }
}

impl FromRedisValue for RenewReply {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        let (tag, _) = Facts::tagged(reply)?;
        Ok(Self(match tag.as_str() {
            "kept" => Renewed::Kept,
            "lost" => Renewed::Lost,
            "recorded" => Renewed::Recorded,
            _ => return unexpected(&tag),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[track_caller]
    fn check<T: FromRedisValue + std::fmt::Debug + PartialEq>(reply: Vec<Value>, expected: T) {
        assert_eq!(T::from_redis_value(Value::Array(reply)).unwrap(), expected);
    }

    #[test]
    fn a_reply_is_read_by_its_tag_and_an_absent_fact_is_none() {
        let taken = |marker, block_left_ms| AcquireReply::Taken { marker, block_left_ms };
        check(vec![text("taken"), Value::Nil, Value::Nil], taken(None, None));
        check(vec![text("taken"), text(""), Value::Int(5)], taken(Some(String::new()), Some(5)));
        let held = |marked, position| AcquireReply::Held { marked, position };
        check(vec![text("held"), Value::Int(1), Value::Nil], held(true, None));
        check(vec![text("held"), Value::Int(0), Value::Int(0)], held(false, Some(0)));
        check(vec![text("recorded"), text("r")], AcquireReply::Recorded("r".into()));
        check(vec![text("released"), Value::Nil], ReleaseReply { kept: true, found: None });
        check(vec![text("lost"), text("r")], ReleaseReply { kept: false, found: Some("r".into()) });
        check(vec![text("recorded")], RenewReply(Renewed::Recorded));
    }

    #[test]
    fn an_unknown_tag_is_an_error_that_names_it() {
        let error = AcquireReply::from_redis_value(Value::Array(vec![text("moved")])).unwrap_err();
        assert!(error.to_string().contains("unknown tag `moved`"), "{error}");
    }
}
