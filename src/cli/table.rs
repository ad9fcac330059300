//! Tables for people. On a terminal, cells that are too long are wrapped within their columns.
//! Elsewhere each row is one line, for `grep` and `awk`, and nothing is styled.

use comfy_table::{
    Attribute, Cell, ColumnConstraint, ContentArrangement, Table as Layout, Width, presets::NOTHING,
};

use super::{desk::plain, print::print_verbatim};
use crate::telemetry::takes_colour;

/// How many rows are laid out and printed together, so that a long table needs little memory.
const ROWS_TOGETHER: usize = 1000;
/// The blanks between two columns.
const GAP: u16 = 2;
/// The least width of a terminal that is worth wrapping for: in a narrower one, each column would
/// have a few characters. A terminal that does not know its width reports 0.
const WIDTH_MIN: u16 = 40;

/// A table with `N` columns.
pub(super) struct TextTable<const N: usize> {
    /// The titles of the columns, until they are printed.
    titles: Option<[&'static str; N]>,
    rows: Vec<[String; N]>,
    /// The widest cell of each column so far. Rows that are laid out later keep to these columns.
    widths: [u16; N],
}

impl<const N: usize> TextTable<N> {
    /// A table with these column titles.
    pub(super) const fn new(titles: [&'static str; N]) -> Self {
        Self { titles: Some(titles), rows: Vec::new(), widths: [0; N] }
    }

    /// A table without titles.
    pub(super) const fn untitled() -> Self {
        Self { titles: None, rows: Vec::new(), widths: [0; N] }
    }

    /// Adds a row. Prints the rows so far if there are many.
    pub(super) fn add(&mut self, row: [String; N]) {
        self.rows.push(row);
        if self.rows.len() >= ROWS_TOGETHER {
            self.flush();
        }
    }

    /// Prints the rows that were not printed yet.
    pub(super) fn flush(&mut self) {
        let lines = self.lines(Layout::new(), takes_colour());
        if !lines.is_empty() {
            print_verbatim(&format!("{}\n", lines.join("\n")));
        }
    }

    /// Lays out the rows that were not printed yet. The layout knows whether stdout is a terminal.
    fn lines(&mut self, mut layout: Layout, is_styled: bool) -> Vec<String> {
        let title = |title: &str| {
            let cell = Cell::new(title);
            if is_styled { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        layout.load_style(NOTHING).style_text_only();
        if let Some(titles) = self.titles.take() {
            layout.set_header(titles.map(title));
        }
        // Hidden characters are escaped here, because the lines are printed as they are.
        let rows = std::mem::take(&mut self.rows).into_iter();
        layout.add_rows(rows.map(|row| row.map(|cell| plain(&cell))));
        for (column, width) in self.widths.iter_mut().zip(layout.column_max_content_widths()) {
            *column = width.max(*column);
        }
        let fits_terminal = layout.width().is_some_and(|width| width >= WIDTH_MIN);
        if fits_terminal {
            layout.set_content_arrangement(ContentArrangement::Dynamic);
        }
        for (n, column) in layout.column_iter_mut().enumerate() {
            column.set_padding((0, if n + 1 < N { GAP } else { 0 }));
            if !fits_terminal {
                let width = self.widths[n].saturating_add(column.padding_width());
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
            }
        }
        layout.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Layout {
        let mut layout = Layout::new();
        layout.force_no_tty();
        layout
    }

    fn terminal(width: u16) -> Layout {
        let mut layout = file();
        layout.set_width(width).enforce_styling();
        layout
    }

    fn table(rows: &[[&str; 2]]) -> TextTable<2> {
        let mut table = TextTable::new(["ID", "WHAT TO DO"]);
        rows.iter().for_each(|row| table.add(row.map(str::to_owned)));
        table
    }

    const ID: &str = "cw-20b6abfbe5d08fc34ad215b6e3e2593c12ea549c";

    #[test]
    fn in_a_file_each_row_is_one_line_and_has_no_trailing_blanks() {
        let long = "wait, then inquire; ".repeat(20);
        let lines = table(&[[ID, long.trim()], ["c", "订单 1"]]).lines(file(), true);
        let titles = format!("ID{}WHAT TO DO", " ".repeat(ID.len()));
        assert_eq!(lines, [titles, format!("{ID}  {}", long.trim()), format!("{:<45}订单 1", "c")]);
    }

    #[test]
    fn on_a_terminal_cells_are_wrapped_and_nothing_is_cut() {
        let lines = table(&[[ID, "wait, then inquire"]]).lines(terminal(40), false);
        assert!(
            lines.len() > 2 && lines.iter().all(|line| line.chars().count() <= 40),
            "{lines:?}"
        );
        let cells = lines[1..].iter().map(|line| line.split_once("  ").unwrap_or((line, "")));
        let (ids, words): (Vec<_>, Vec<_>) = cells.map(|(id, word)| (id, word.trim())).unzip();
        assert_eq!((ids.concat().as_str(), words.concat().as_str()), (ID, "wait, then inquire"));
    }

    #[test]
    fn a_terminal_without_a_useful_width_wraps_nothing() {
        for width in [0, 39] {
            let lines = table(&[[ID, "wait, then inquire"]]).lines(terminal(width), false);
            assert_eq!(lines[1], format!("{ID}  wait, then inquire"), "{width}");
        }
    }

    #[test]
    fn only_titles_on_a_terminal_are_styled() {
        let lines = table(&[["c", "wait"]]).lines(terminal(80), true);
        assert!(lines[0].contains("\u{1b}[1mID\u{1b}[0m"), "{lines:?}");
        assert_eq!(lines[1], "c   wait");
        for (layout, is_styled) in [(terminal(80), false), (file(), true)] {
            let lines = table(&[["c", "wait"]]).lines(layout, is_styled);
            assert_eq!(lines, ["ID  WHAT TO DO", "c   wait"]);
        }
    }

    #[test]
    fn rows_that_are_printed_later_keep_to_the_columns() {
        let mut table = table(&[["long-id", "wait"]]);
        assert_eq!(table.lines(file(), false), ["ID       WHAT TO DO", "long-id  wait"]);
        table.add(["c".into(), "wait".into()]);
        assert_eq!(table.lines(file(), false), ["c        wait"]);
        assert_eq!(table.lines(file(), false), Vec::<String>::new());
    }

    #[test]
    fn hidden_characters_in_cells_are_escaped() {
        let lines = table(&[["a\u{1b}[31m\nb", "\u{202e}"]]).lines(terminal(80), false);
        assert_eq!(lines[1], "a\\u{1b}[31m\\u{a}b  \\u{202e}");
    }
}
