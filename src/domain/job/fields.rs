//! Reads the known fields of a JSON object, and detects a field that occurs twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields of a job that the message contract names.
pub(in crate::domain) const JOB_FIELDS: [&str; 6] =
    ["captureRequestId", "paymentId", "captureAmount", "amount", "expiresAt", "metadata"];

/// The known fields of one object, as written in the text. Of a repeated field, the first value
/// counts.
pub(in crate::domain) struct Fields<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a RawValue>; N],
    repeated: [bool; N],
    more: More<'a>,
}

/// The fields that were requested beside the known ones.
#[derive(Default)]
pub(in crate::domain) struct More<'a> {
    /// Each field once, in the order of the text.
    pub(in crate::domain) found: Vec<(&'a str, &'a RawValue)>,
    /// The first name that occurs more than once.
    pub(in crate::domain) repeated: Option<&'a str>,
}

impl<'a, const N: usize> Fields<'a, N> {
    /// The first known field, in the order of the names, that occurs more than once.
    pub(in crate::domain) fn repeated(&self) -> Option<&'static str> {
        self.repeated.iter().position(|repeated| *repeated).map(|at| self.names[at])
    }

    pub(in crate::domain) fn is_repeated(&self, name: &str) -> bool {
        self.names.iter().position(|known| *known == name).is_some_and(|at| self.repeated[at])
    }

    pub(in crate::domain) fn values(&self) -> &[Option<&'a RawValue>; N] {
        &self.values
    }

    /// The known fields, and the other requested ones.
    pub(in crate::domain) fn into_parts(self) -> ([Option<&'a RawValue>; N], More<'a>) {
        (self.values, self.more)
    }
}

/// Reads the known fields and the other requested ones. All other fields are skipped.
pub(in crate::domain) fn read<'a, const N: usize>(
    text: &'a str,
    names: [&'static str; N],
    more: &'a [String],
) -> Result<Fields<'a, N>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_any(FieldsVisitor { names, more })?;
    deserializer.end()?;
    Ok(fields)
}

pub(in crate::domain) fn is_null(raw: &RawValue) -> bool {
    raw.get().starts_with('n')
}

/// What was found instead of a string: its JSON type, or why a string can't be read.
pub(in crate::domain) fn found(raw: &RawValue) -> &'static str {
    match type_of(raw) {
        // The JSON was parsed before, so this is the only reason why a string can't be read.
        "a string" => "half of a surrogate pair",
        other => other,
    }
}

/// The JSON type of a value, in words.
pub(in crate::domain) fn type_of(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

struct FieldsVisitor<'a, const N: usize> {
    names: [&'static str; N],
    more: &'a [String],
}

impl<'de, const N: usize> Visitor<'de> for FieldsVisitor<'de, N> {
    type Value = Fields<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { names, more: asked } = self;
        let (values, repeated, more) = ([None; N], [false; N], More::default());
        let mut fields = Fields { names, values, repeated, more };
        while let Some(name) = map.next_key_seed(Name { known: &names, more: asked })? {
            match name {
                Key::Known(at) if fields.values[at].is_some() => {
                    fields.repeated[at] = true;
                    map.next_value::<IgnoredAny>()?;
                }
                Key::Known(at) => fields.values[at] = Some(map.next_value()?),
                Key::More(name) if fields.more.found.iter().any(|(other, _)| *other == name) => {
                    fields.more.repeated.get_or_insert(name);
                    map.next_value::<IgnoredAny>()?;
                }
                Key::More(name) => fields.more.found.push((name, map.next_value()?)),
                Key::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("found a string"))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(A::Error::custom("found a list"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Err(E::custom("found a boolean"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Err(E::custom("found null"))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(E::custom("found a number"))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Err(E::custom("found a number"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(E::custom("found a number"))
    }
}

/// Matches a key against the names.
struct Name<'n, 'a> {
    known: &'n [&'static str],
    more: &'a [String],
}

/// Which list a key was found in.
enum Key<'a> {
    Known(usize),
    More(&'a str),
    Unknown,
}

impl<'de, 'a> DeserializeSeed<'de> for Name<'_, 'a> {
    type Value = Key<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Name<'_, 'a> {
    type Value = Key<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(at) = self.known.iter().position(|known| *known == name) {
            return Ok(Key::Known(at));
        }
        let more = self.more.iter().find(|more| *more == name);
        Ok(more.map_or(Key::Unknown, |name| Key::More(name)))
    }
}
