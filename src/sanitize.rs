//! How text that others wrote is shown to people: every character in it can be seen, and none is
//! acted on by a terminal.
//!
//! Hidden are: control characters (Cc), format characters (Cf: marks that reverse text, joiners,
//! zero-width ones, tags), the line and paragraph separators of Unicode, and whatever else Unicode
//! calls ignorable, such as variation selectors and fillers: two ids that differ in one of them
//! look the same.

use std::{borrow::Cow, fmt::Write as _, io};

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory},
};

/// Whether nobody can see it, or a terminal acts on it.
pub(crate) fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    matches!(
        category,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// For people: a hidden character as `\u{202e}`. What has none stays as it is, so doing it twice
/// changes nothing.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    replace(text, is_hidden, push_text)
}

/// The same for what may have several lines: our own line feeds stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    replace(text, |c| c != '\n' && is_hidden(c), push_text)
}

/// The same for a JSON document: `\u202e`. Beyond ASCII and at DEL a document has characters in
/// strings only, and what is below U+0020 is white space between values: in strings it is escaped
/// already.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| c >= '\u{7f}' && is_hidden(c);
    replace(document, is_hidden, |out, c| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string can't fail.
            write!(out, "\\u{unit:04x}").unwrap_or_default();
        }
    })
}

fn push_text(out: &mut String, c: char) {
    out.extend(c.escape_unicode());
}

fn replace(
    text: &str,
    is_hidden: impl Fn(char) -> bool,
    push: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.chars().any(&is_hidden) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) { push(&mut out, c) } else { out.push(c) }
    }
    out.into()
}

/// Writes lines of log, each with one call, as the formatter hands them over.
pub(crate) struct LogLines<W> {
    /// Where to.
    pub(crate) to: W,
    /// JSON, or text.
    pub(crate) is_json: bool,
    /// The formatter colours them: its escape sequences stay. It escapes those of others itself.
    pub(crate) is_coloured: bool,
}

impl<W: io::Write> io::Write for LogLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        // One event is one line, whatever stands in it.
        let (body, end) = match text.strip_suffix('\n') {
            Some(body) => (body, "\n"),
            None => (&*text, ""),
        };
        let keeps = |c: char| self.is_coloured && c == '\u{1b}';
        let body = if self.is_json {
            json(body)
        } else {
            replace(body, |c| is_hidden(c) && !keeps(c), push_text)
        };
        self.to.write_all(format!("{body}{end}").as_bytes()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_can_be_seen_stays_as_it_is() {
        for plain in ["", "order 7-é", "订单", "заказ", "شحنة", "a\\u{202e}b", "🚚"] {
            assert!(matches!(text(plain), Cow::Borrowed(same) if same == plain));
            assert!(matches!(json(plain), Cow::Borrowed(same) if same == plain));
        }
    }

    #[test]
    fn every_hidden_character_is_written_out() {
        for (hidden, in_text, in_json) in [
            ('\u{7f}', "\\u{7f}", "\\u007f"),
            ('\u{85}', "\\u{85}", "\\u0085"),
            ('\u{9b}', "\\u{9b}", "\\u009b"),
            ('\u{ad}', "\\u{ad}", "\\u00ad"),
            ('\u{34f}', "\\u{34f}", "\\u034f"),
            ('\u{61c}', "\\u{61c}", "\\u061c"),
            ('\u{200b}', "\\u{200b}", "\\u200b"),
            ('\u{200d}', "\\u{200d}", "\\u200d"),
            ('\u{2028}', "\\u{2028}", "\\u2028"),
            ('\u{2029}', "\\u{2029}", "\\u2029"),
            ('\u{202e}', "\\u{202e}", "\\u202e"),
            ('\u{2066}', "\\u{2066}", "\\u2066"),
            ('\u{3164}', "\\u{3164}", "\\u3164"),
            ('\u{fe0f}', "\\u{fe0f}", "\\ufe0f"),
            ('\u{feff}', "\\u{feff}", "\\ufeff"),
            ('\u{e0001}', "\\u{e0001}", "\\udb40\\udc01"),
            ('\u{e0041}', "\\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(text(&format!("a{hidden}b")), format!("a{in_text}b"));
            assert_eq!(json(&format!("\"a{hidden}b\"")), format!("\"a{in_json}b\""));
        }
        assert_eq!(text("a\u{1b}[1m\n\r\tb"), "a\\u{1b}[1m\\u{a}\\u{d}\\u{9}b");
        assert_eq!(lines("a\u{7}\nb"), "a\\u{7}\nb");
    }

    #[test]
    fn a_json_document_means_what_it_meant() {
        let hostile: String = ('\0'..='\u{2fff}').chain('\u{e0000}'..='\u{e01ff}').collect();
        let value = serde_json::json!({ hostile.as_str(): [hostile.as_str()] });
        let document = value.to_string();
        let shown = json(&document);
        assert!(!shown.chars().any(is_hidden));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn one_event_of_the_log_is_one_line() {
        let write = |is_json, is_coloured, line: &str| {
            let mut log = LogLines { to: Vec::new(), is_json, is_coloured };
            log.write_all(line.as_bytes()).unwrap();
            String::from_utf8(log.to).unwrap()
        };
        assert_eq!(write(false, false, "a\u{1b}[1m\nb\n"), "a\\u{1b}[1m\\u{a}b\n");
        assert_eq!(
            write(false, true, "\u{1b}[2ma\u{1b}[0m\u{9b}\n"),
            "\u{1b}[2ma\u{1b}[0m\\u{9b}\n"
        );
        assert_eq!(write(true, false, "{\"a\":\"\u{202e}\"}\n"), "{\"a\":\"\\u202e\"}\n");
    }
}
