//! Reads the known fields of a JSON object, and notices when one of them stands twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The known fields of one object, as they stand in the text; of a repeated one, the first.
pub(super) struct Fields<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a RawValue>; N],
    repeated: [bool; N],
    more: More<'a>,
}

/// The fields that were asked for beside the known ones.
#[derive(Default)]
pub(super) struct More<'a> {
    /// Each once, in the order of the text.
    pub(super) found: Vec<(&'a str, &'a RawValue)>,
    /// The first that stands more than once.
    pub(super) repeated: Option<&'a str>,
}

impl<'a, const N: usize> Fields<'a, N> {
    /// The first field, in the order of their names, that stands more than once.
    pub(super) fn repeated(&self) -> Option<&'static str> {
        self.repeated.iter().position(|repeated| *repeated).map(|at| self.names[at])
    }

    pub(super) fn is_repeated(&self, name: &str) -> bool {
        self.names.iter().position(|known| *known == name).is_some_and(|at| self.repeated[at])
    }

    pub(super) fn values(&self) -> &[Option<&'a RawValue>; N] {
        &self.values
    }

    /// The known fields, and the others that were asked for.
    pub(super) fn into_parts(self) -> ([Option<&'a RawValue>; N], More<'a>) {
        (self.values, self.more)
    }
}

/// Reads the fields with these names, and more of them by name; others are passed over.
pub(super) fn read<'a, const N: usize>(
    text: &'a str,
    names: [&'static str; N],
    more: &'a [String],
) -> Result<Fields<'a, N>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_any(FieldsVisitor { names, more })?;
    deserializer.end()?;
    Ok(fields)
}

pub(super) fn is_null(raw: &RawValue) -> bool {
    raw.get().starts_with('n')
}

/// What was found in place of a text: its JSON type; of a text that can't be read, why.
pub(super) fn found(raw: &RawValue) -> &'static str {
    match type_of(raw) {
        // JSON that was read once holds nothing else that a text can't be made of.
        "a string" => "half of a surrogate pair",
        other => other,
    }
}

/// The JSON type of a value, in words.
pub(super) fn type_of(raw: &RawValue) -> &'static str {
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
                Place::Known(at) if fields.values[at].is_some() => {
                    fields.repeated[at] = true;
                    map.next_value::<IgnoredAny>()?;
                }
                Place::Known(at) => fields.values[at] = Some(map.next_value()?),
                Place::More(name) if fields.more.found.iter().any(|(other, _)| *other == name) => {
                    fields.more.repeated.get_or_insert(name);
                    map.next_value::<IgnoredAny>()?;
                }
                Place::More(name) => fields.more.found.push((name, map.next_value()?)),
                Place::Unknown => {
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

/// A key that is looked up among the names.
struct Name<'n, 'a> {
    known: &'n [&'static str],
    more: &'a [String],
}

/// Where a key was found.
enum Place<'a> {
    Known(usize),
    More(&'a str),
    Unknown,
}

impl<'de, 'a> DeserializeSeed<'de> for Name<'_, 'a> {
    type Value = Place<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Name<'_, 'a> {
    type Value = Place<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        if let Some(at) = self.known.iter().position(|known| *known == name) {
            return Ok(Place::Known(at));
        }
        let more = self.more.iter().find(|more| *more == name);
        Ok(more.map_or(Place::Unknown, |name| Place::More(name)))
    }
}
