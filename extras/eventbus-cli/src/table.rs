//! Tables: columns that stand under their names, one line for each row.

use crate::output::{BOLD, NONE, paint};
use anstyle::Style;
use console::{measure_text_width, truncate_str};
use eventbus_core::printable::printable;

/// A text in a style.
#[derive(Clone, Debug)]
pub(crate) struct Cell(Style, String);

/// A cell of text from outside, which is made fit for a terminal.
pub(crate) fn cell(text: impl AsRef<str>) -> Cell {
    styled(NONE, text)
}

/// The same, in a style.
pub(crate) fn styled(style: Style, text: impl AsRef<str>) -> Cell {
    Cell(style, printable(text.as_ref()).to_string())
}

/// The widths of columns, which grow with what is written into them.
#[derive(Debug)]
pub(crate) struct Columns {
    /// A name that begins with `>` is that of a column of numbers, which end under each other.
    names: &'static [&'static str],
    widths: Vec<usize>,
}

impl Columns {
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        let widths = names.iter().map(|name| measure_text_width(name.trim_start_matches('>'))).collect();
        Self { names, widths }
    }

    pub(crate) fn fit(&mut self, row: &[Cell]) {
        for (width, Cell(_, text)) in self.widths.iter_mut().zip(row) {
            *width = measure_text_width(text).max(*width);
        }
    }

    pub(crate) fn header(&self) -> String {
        let names = self.names.iter().map(|name| Cell(BOLD, name.trim_start_matches('>').to_owned()));
        self.line(&names.collect::<Vec<_>>(), None)
    }

    /// A row in one line. The last column is cut where the terminal ends.
    pub(crate) fn line(&self, row: &[Cell], limit: Option<usize>) -> String {
        let (mut line, mut used) = (String::new(), 0);
        for (place, Cell(style, text)) in row.iter().enumerate() {
            let last = place + 1 == row.len();
            let room = limit.filter(|_| last).map(|limit| limit.saturating_sub(used).max(8));
            let text = room.map_or(text.into(), |room| truncate_str(text, room, "…"));
            let padding = " ".repeat(self.widths[place].saturating_sub(measure_text_width(&text)));
            if self.names[place].starts_with('>') {
                line.push_str(&padding);
                line.push_str(&paint(*style, &text));
            } else {
                line.push_str(&paint(*style, &text));
                if !last {
                    line.push_str(&padding);
                }
            }
            if !last {
                line.push_str("  ");
                used += self.widths[place] + 2;
            }
        }
        line
    }
}

/// Rows under the names of their columns.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Columns,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        Self { columns: Columns::new(names), rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        self.columns.fit(&row);
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn lines(&self, limit: Option<usize>) -> Vec<String> {
        let rows = self.rows.iter().map(|row| self.columns.line(row, limit));
        std::iter::once(self.columns.header()).chain(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(table: &Table, limit: Option<usize>) -> String {
        let lines = table.lines(limit).join("\n");
        console::strip_ansi_codes(&lines).into_owned()
    }

    #[test]
    fn columns_stand_under_each_other_and_numbers_end_there() {
        let mut table = Table::new(&["TOPIC", ">BACKLOG", "GROUP"]);
        table.push(vec![cell("日本"), cell("7"), cell("a")]);
        table.push(vec![cell("order.placed"), cell("1,234"), cell("shop.b")]);
        let expected =
            "TOPIC         BACKLOG  GROUP\n日本                7  a\norder.placed    1,234  shop.b";
        assert_eq!(drawn(&table, None), expected);
    }

    #[test]
    fn a_terminal_cuts_the_last_column_and_a_pipe_does_not() {
        let mut table = Table::new(&["TOPIC", "PAYLOAD"]);
        table.push(vec![cell("a"), cell("x".repeat(100))]);
        assert!(drawn(&table, Some(20)).ends_with(&format!("a      {}…", "x".repeat(12))));
        assert!(drawn(&table, None).ends_with(&"x".repeat(100)));
    }

    #[test]
    fn a_cell_cannot_move_the_cursor() {
        let mut table = Table::new(&["KEY", "PAYLOAD"]);
        table.push(vec![cell("\u{1b}[2J"), cell("a\nb")]);
        assert!(drawn(&table, None).ends_with("\\u{1b}[2J  a\\nb"));
    }
}
