//! Lists of names in arguments, such as `--class risk,payer`.

use std::{fmt, str::FromStr};

/// The names in one argument, separated by commas or blanks, as in lists of settings.
#[derive(Clone, Debug)]
pub(super) struct NameList<T>(Vec<T>);

impl<T: FromStr<Err: fmt::Display>> FromStr for NameList<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<T> = text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|name| !name.is_empty())
            .map(|name| name.parse().map_err(|error: T::Err| error.to_string()))
            .collect::<Result<_, _>>()?;
        // A filter without names selects everything, so an empty argument (an unset shell variable)
        // must be an error.
        if names.is_empty() { Err("must name at least one".into()) } else { Ok(Self(names)) }
    }
}

/// All names of an option that may be given several times.
pub(super) fn all<T: Clone>(lists: &[NameList<T>]) -> Vec<T> {
    lists.iter().flat_map(|list| list.0.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_commas_or_blanks() {
        for text in ["a,b c", "a, b,c", " a b\tc ", "a,,b c,"] {
            let names: NameList<String> = text.parse().unwrap();
            assert_eq!(all(&[names]), ["a", "b", "c"], "{text}");
        }
        for text in ["", " ", ",", " , "] {
            assert!(text.parse::<NameList<String>>().is_err(), "{text}");
        }
        let wrong = "1,x".parse::<NameList<u8>>().unwrap_err();
        assert!(wrong.contains("invalid digit"), "{wrong}");
    }
}
