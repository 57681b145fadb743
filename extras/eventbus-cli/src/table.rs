//! Tables: columns that stand under their names, one line for each row.
//!
//! On a terminal each line is as long as the terminal is wide, at most. Where room is short, keys and ids are cut first,
//! then names; what says why has the room that is left. Where that is not enough, columns go.

use crate::output::{BOLD, NONE, paint};
use anstyle::Style;
use console::measure_text_width;
use eventbus_core::printable::printable;
use std::borrow::Cow;

/// What is between two columns.
const GAP: usize = 2;
/// What part of the terminal a text gets before anything is cut for others; while columns can go, it keeps it.
const TEXT: (usize, usize) = (1, 3);

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

/// A column: its name, and what becomes of it where room is short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    name: &'static str,
    kind: Kind,
    /// Columns with a higher number go earlier; with 0 one stays.
    goes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ends under its name, and is never cut.
    Number,
    /// Is never cut.
    Whole,
    Id,
    Name,
    /// A name that is copied, so columns go before it is cut.
    Copied,
    /// A name whose end says more than its beginning.
    Place,
    Text,
}

impl Kind {
    /// How narrow it may become.
    fn least(self) -> usize {
        match self {
            Self::Number | Self::Whole => usize::MAX,
            Self::Id => 6,
            Self::Name | Self::Copied => 10,
            Self::Place => 14,
            Self::Text => 16,
        }
    }
}

impl Column {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, goes: 0 }
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        Self::new(name, Kind::Number)
    }

    pub(crate) const fn whole(name: &'static str) -> Self {
        Self::new(name, Kind::Whole)
    }

    pub(crate) const fn id(name: &'static str) -> Self {
        Self::new(name, Kind::Id)
    }

    pub(crate) const fn name(name: &'static str) -> Self {
        Self::new(name, Kind::Name)
    }

    pub(crate) const fn copied(name: &'static str) -> Self {
        Self::new(name, Kind::Copied)
    }

    pub(crate) const fn place(name: &'static str) -> Self {
        Self::new(name, Kind::Place)
    }

    pub(crate) const fn text(name: &'static str) -> Self {
        Self::new(name, Kind::Text)
    }

    /// Where room is short, it goes; before those with a lower number.
    pub(crate) const fn goes(self, goes: u8) -> Self {
        Self { goes, ..self }
    }

    fn least(&self, natural: usize) -> usize {
        natural.min(self.kind.least().max(self.name.len()))
    }
}

/// The widths of columns, which grow with what is written into them.
#[derive(Debug)]
pub(crate) struct Columns {
    columns: Vec<Column>,
    widths: Vec<usize>,
    /// Whether anything was written into a column but zeros and dashes.
    says: Vec<bool>,
}

impl Columns {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        let widths = columns.iter().map(|column| column.name.len()).collect();
        Self { columns: columns.to_vec(), widths, says: vec![false; columns.len()] }
    }

    pub(crate) fn fit(&mut self, row: &[Cell]) {
        for (width, Cell(_, text)) in self.widths.iter_mut().zip(row) {
            *width = measure_text_width(text).max(*width);
        }
        for (says, Cell(_, text)) in self.says.iter_mut().zip(row) {
            *says |= !matches!(text.as_str(), "0" | "-");
        }
    }

    /// The columns, where a number that is nowhere more than zero goes first.
    fn by_what_they_say(&self) -> Vec<Column> {
        let columns = self.columns.iter().zip(&self.says).map(|(column, says)| match column.kind {
            Kind::Number if column.goes > 0 && !says => column.goes(u8::MAX),
            _ => *column,
        });
        columns.collect()
    }

    pub(crate) fn header(&self, limit: Option<usize>) -> String {
        let names = self.columns.iter().map(|column| Cell(BOLD, column.name.to_owned()));
        self.line(&names.collect::<Vec<_>>(), limit)
    }

    /// A row in one line.
    pub(crate) fn line(&self, row: &[Cell], limit: Option<usize>) -> String {
        let widths = match limit {
            Some(limit) => narrowed(&self.by_what_they_say(), &self.widths, limit),
            None => self.widths.iter().copied().map(Some).collect(),
        };
        let shown = self.columns.iter().zip(row).zip(widths);
        let shown: Vec<_> =
            shown.filter_map(|((column, cell), width)| Some((column, cell, width?))).collect();
        let mut line = String::new();
        for (place, (column, Cell(style, text), width)) in shown.iter().enumerate() {
            let last = place + 1 == shown.len();
            let text = if limit.is_some() { cut(text, *width, column.kind) } else { text.into() };
            let padding = " ".repeat(width.saturating_sub(measure_text_width(&text)));
            if place > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if column.kind == Kind::Number {
                line.push_str(&padding);
                line.push_str(&paint(*style, &text));
            } else {
                line.push_str(&paint(*style, &text));
                if !last {
                    line.push_str(&padding);
                }
            }
        }
        line
    }
}

/// A row without a header, as wide as what is in it.
pub(crate) fn line(columns: &'static [Column], row: &[Cell], limit: Option<usize>) -> String {
    let widths = row.iter().map(|Cell(_, text)| measure_text_width(text)).collect();
    Columns { columns: columns.to_vec(), widths, says: vec![true; columns.len()] }.line(row, limit)
}

/// The text where it fits, otherwise the part of it that says most. A sign may be wider than the characters that it is
/// made of, so texts are measured and never characters.
fn cut(text: &str, width: usize, kind: Kind) -> Cow<'_, str> {
    if measure_text_width(text) <= width {
        return text.into();
    }
    let mut places = text.char_indices().map(|(at, _)| at);
    if kind == Kind::Place {
        let end = places.find(|at| measure_text_width(&text[*at..]) < width).unwrap_or(text.len());
        return format!("…{}", &text[end..]).into();
    }
    let fits = places.take_while(|at| measure_text_width(&text[..*at]) < width);
    format!("{}…", &text[..fits.last().unwrap_or_default()]).into()
}

/// How wide columns are that together have `limit` columns of a terminal; none: it is not shown.
fn narrowed(columns: &[Column], natural: &[usize], limit: usize) -> Vec<Option<usize>> {
    let mut shown: Vec<_> = columns.iter().copied().zip(natural.iter().copied()).enumerate().collect();
    loop {
        let gaps = GAP * shown.len().saturating_sub(1);
        let text = limit * TEXT.0 / TEXT.1;
        let can_go = shown.iter().any(|(_, (column, _))| column.goes > 0);
        let least = |column: &Column, natural: usize| match column.kind {
            Kind::Text if can_go => natural.min(text),
            Kind::Copied if can_go => natural,
            _ => column.least(natural),
        };
        let room = limit.saturating_sub(gaps);
        let mut widths: Vec<_> = shown
            .iter()
            .map(
                |(_, (column, natural))| {
                    if column.kind == Kind::Text { (*natural).min(text) } else { *natural }
                },
            )
            .collect();
        for kinds in [&[Kind::Id][..], &[Kind::Name, Kind::Place], &[Kind::Copied], &[Kind::Text]] {
            // The widest of them gives, one column after the other.
            while widths.iter().sum::<usize>() > room {
                let gives = shown.iter().zip(&mut widths).filter(|((_, (column, natural)), width)| {
                    kinds.contains(&column.kind) && **width > least(column, *natural)
                });
                let Some((_, width)) = gives.max_by_key(|(_, width)| **width) else { break };
                *width -= 1;
            }
        }
        let used: usize = widths.iter().sum();
        let goes = shown.iter().enumerate().max_by_key(|(_, (_, (column, _)))| column.goes);
        if used > room
            && let Some((place, _)) = goes.filter(|(_, (_, (column, _)))| column.goes > 0)
        {
            shown.remove(place);
            continue;
        }
        // A text has what is left.
        let mut left = room.saturating_sub(used);
        for ((_, (column, natural)), width) in shown.iter().zip(&mut widths) {
            if column.kind == Kind::Text {
                let more = natural.saturating_sub(*width).min(left);
                *width += more;
                left -= more;
            }
        }
        let mut all = vec![None; columns.len()];
        let mut rest = limit;
        for ((place, _), width) in shown.iter().zip(widths) {
            // On a terminal that is too narrow for anything, the last ones are cut off.
            let width = width.min(rest);
            rest = rest.saturating_sub(width + GAP);
            all[*place] = (width > 0).then_some(width);
        }
        return all;
    }
}

/// Rows under the names of their columns.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Columns,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Self { columns: Columns::new(columns), rows: Vec::new() }
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
        std::iter::once(self.columns.header(limit)).chain(rows).collect()
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
        let mut table =
            Table::new(const { &[Column::name("TOPIC"), Column::number("BACKLOG"), Column::name("GROUP")] });
        table.push(vec![cell("日本"), cell("7"), cell("a")]);
        table.push(vec![cell("order.placed"), cell("1,234"), cell("shop.b")]);
        let expected =
            "TOPIC         BACKLOG  GROUP\n日本                7  a\norder.placed    1,234  shop.b";
        assert_eq!(drawn(&table, None), expected);
    }

    #[test]
    fn what_is_copied_is_whole_as_long_as_columns_can_go() {
        let columns = const {
            &[Column::copied("GROUP"), Column::number("PARKED").goes(1), Column::place("HANDLER").goes(2)]
        };
        let mut table = Table::new(columns);
        table.push(vec![cell("g".repeat(30)), cell("0"), cell("h".repeat(30))]);
        for (limit, columns) in [(80, 3), (60, 3), (52, 2), (46, 2), (40, 1), (30, 1)] {
            let row = drawn(&table, Some(limit)).lines().nth(1).unwrap().to_owned();
            assert!(row.starts_with(&"g".repeat(30)), "{limit}: {row}");
            assert_eq!(row.split_whitespace().count(), columns, "{limit}: {row}");
        }
        assert!(drawn(&table, Some(20)).contains(&format!("{}…", "g".repeat(19))));
    }

    #[test]
    fn keys_are_cut_first_then_names_and_a_pipe_cuts_nothing() {
        let mut table =
            Table::new(const { &[Column::id("KEY"), Column::name("GROUP"), Column::text("REASON")] });
        table.push(vec![cell("k".repeat(20)), cell("g".repeat(20)), cell("r".repeat(40))]);
        let row = |limit| drawn(&table, Some(limit)).lines().nth(1).unwrap().to_owned();
        let letters = |row: &str, letter| row.chars().filter(|c| *c == letter).count();
        for (limit, key, group, reason) in
            [(84, 20, 20, 40), (70, 20, 20, 25), (60, 15, 20, 19), (44, 5, 20, 13), (40, 5, 16, 12)]
        {
            let row = row(limit);
            assert_eq!(
                (letters(&row, 'k'), letters(&row, 'g'), letters(&row, 'r')),
                (key, group, reason),
                "{row}"
            );
        }
        assert!(drawn(&table, None).ends_with(&"r".repeat(40)));
    }

    #[test]
    fn columns_go_where_they_cannot_be_cut_and_no_line_is_longer_than_the_terminal() {
        let mut table = Table::new(
            const {
                &[
                    Column::number("ID"),
                    Column::place("HANDLER").goes(2),
                    Column::whole("FAILED"),
                    Column::whole("KIND").goes(2),
                    Column::text("REASON"),
                ]
            },
        );
        table.push(vec![
            cell("1,234"),
            cell("src/deep/in/a/folder/shop.rs:127"),
            cell("2 min ago"),
            cell("timed-out"),
            cell("商品の在庫 ❤️☎️✌️❤️☎️✌️🇩🇪🇩🇪 e\u{301}e\u{301} 👍🏽👍🏽 がありません 🦄🦄🦄🦄🦄🦄🦄"),
        ]);
        assert!(drawn(&table, Some(80)).contains("…"), "{}", drawn(&table, Some(80)));
        let narrow = drawn(&table, Some(60));
        assert!(narrow.contains("r/shop.rs:127") && !narrow.contains("KIND"), "{narrow}");
        assert!(!drawn(&table, Some(40)).contains("HANDLER"));
        for limit in 1..140 {
            for line in drawn(&table, Some(limit)).lines() {
                assert!(measure_text_width(line) <= limit, "{limit}: {line}");
            }
        }
    }

    #[test]
    fn a_cell_cannot_move_the_cursor() {
        let mut table = Table::new(const { &[Column::id("KEY"), Column::text("PAYLOAD")] });
        table.push(vec![cell("\u{1b}[2J"), cell("a\nb")]);
        assert!(drawn(&table, None).ends_with("\\u{1b}[2J  a\\nb"));
    }
}
