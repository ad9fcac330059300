//! Reads the known fields of a JSON object, and notices when one of them stands twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The known fields of one object, as they stand in the text; of a repeated one, the first.
pub(super) struct Fields<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a RawValue>; N],
    repeated: [bool; N],
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

    pub(super) fn into_values(self) -> [Option<&'a RawValue>; N] {
        self.values
    }
}

/// Reads the fields with these names; others are passed over.
pub(super) fn read<'a, const N: usize>(
    text: &'a str,
    names: [&'static str; N],
) -> Result<Fields<'a, N>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_any(FieldsVisitor(names))?;
    deserializer.end()?;
    Ok(fields)
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

struct FieldsVisitor<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for FieldsVisitor<N> {
    type Value = Fields<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields { names: self.0, values: [None; N], repeated: [false; N] };
        while let Some(known) = map.next_key_seed(Name(&self.0))? {
            match known {
                Some(at) if fields.values[at].is_some() => {
                    fields.repeated[at] = true;
                    map.next_value::<IgnoredAny>()?;
                }
                Some(at) => fields.values[at] = Some(map.next_value()?),
                None => {
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

/// A key: its place among the known names.
struct Name<'n>(&'n [&'static str]);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}
