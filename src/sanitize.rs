//! Escapes hidden characters in text from outside, before people see it. Every character of the
//! result is visible, and a terminal acts on none.
//!
//! Hidden characters are control characters (Cc), format characters (Cf: direction marks, joiners,
//! zero-width characters, tags), Unicode's line and paragraph separators, and everything else that
//! Unicode calls ignorable, such as variation selectors and fillers. Without escapes, two ids that
//! differ only in such a character would look the same.

use std::{borrow::Cow, fmt::Write as _, io};

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory},
};

/// Whether a character is invisible, or a terminal acts on it.
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

/// Escapes hidden characters for people, as `\u{202e}`. Text without hidden characters stays
/// unchanged, so a second call changes nothing.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    replace(text, is_hidden, push_text)
}

/// Escapes like [`text`], but keeps line feeds: for texts of several lines.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    replace(text, |c| c != '\n' && is_hidden(c), push_text)
}

/// Escapes hidden characters in a JSON document, as `\u202e`. Only DEL and characters beyond ASCII
/// need it, and valid JSON has those in strings only. Characters below U+0020 are white space
/// between values; in strings they are escaped already.
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

/// Escapes hidden characters in log lines on their way to a writer. The formatter writes each line
/// with one call.
pub(crate) struct LogLines<W> {
    pub(crate) to: W,
    /// Whether lines are JSON; otherwise they are text.
    pub(crate) is_json: bool,
    /// Whether the formatter writes color sequences. Escape characters stay then; the formatter
    /// itself escapes those in the text of others.
    pub(crate) is_coloured: bool,
}

impl<W: io::Write> io::Write for LogLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        // Only the line feed at the end stays: one event is one line, whatever text is in it.
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
    fn visible_text_stays_unchanged() {
        for plain in ["", "order 7-é", "订单", "заказ", "شحنة", "a\\u{202e}b", "🚚"] {
            assert!(matches!(text(plain), Cow::Borrowed(same) if same == plain));
            assert!(matches!(json(plain), Cow::Borrowed(same) if same == plain));
        }
    }

    #[test]
    fn every_hidden_character_is_escaped() {
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
    fn escaping_a_json_document_keeps_its_value() {
        let hostile: String = ('\0'..='\u{2fff}').chain('\u{e0000}'..='\u{e01ff}').collect();
        let value = serde_json::json!({ hostile.as_str(): [hostile.as_str()] });
        let document = value.to_string();
        let shown = json(&document);
        assert!(!shown.chars().any(is_hidden));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn one_log_event_is_one_line() {
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
