//! What a verb writes: for people with colour and in columns, or with `--json` one object per line.

use crate::failure::Result;
use crate::json::Object;
use crate::table::Table;
use crate::text::printable_lines;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use eventbus_core::printable::printable;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
pub(crate) const CARE: Style = AnsiColor::Yellow.on_default();
pub(crate) const TOPIC: Style = AnsiColor::Cyan.on_default();
pub(crate) const NONE: Style = Style::new();

/// The text in a style. The writer takes the style out where it is not wanted.
pub(crate) fn paint(style: Style, text: impl Display) -> String {
    match text.to_string() {
        text if text.is_empty() => text,
        text => format!("{style}{text}{style:#}"),
    }
}

/// Where a verb writes to: standard output, with remarks on standard error.
pub(crate) struct Output {
    pub(crate) json: bool,
    /// How many columns there are, where the output is a terminal.
    pub(crate) width: Option<usize>,
    writer: BufWriter<Box<dyn Write>>,
    remarks: Box<dyn Write>,
    /// Whether a person can see and answer what is asked.
    pub(crate) interactive: bool,
}

impl Output {
    pub(crate) fn standard(json: bool, color: clap::ColorChoice) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let terminal = out.is_terminal();
        // Progress bars decide by themselves otherwise.
        console::set_colors_enabled_stderr(choice(color, &err) != ColorChoice::Never);
        let width = terminal.then(|| usize::from(console::Term::stdout().size().1));
        let writer = AutoStream::new(out.lock(), choice(color, &out));
        Self {
            json,
            width,
            writer: BufWriter::new(Box::new(writer)),
            interactive: io::stdin().is_terminal() && err.is_terminal(),
            remarks: Box::new(AutoStream::new(io::stderr(), choice(color, &err))),
        }
    }

    /// Output into two texts, what is written and what is remarked.
    #[cfg(test)]
    pub(crate) fn captured(json: bool, out: Captured, remarks: Captured) -> Self {
        let writer = BufWriter::new(Box::new(out) as Box<dyn Write>);
        Self { json, width: None, writer, remarks: Box::new(remarks), interactive: false }
    }

    /// One line.
    pub(crate) fn line(&mut self, line: impl Display) -> Result {
        writeln!(self.writer, "{line}")?;
        Ok(())
    }

    /// One object, in one line.
    pub(crate) fn object(&mut self, object: Object) -> Result {
        self.line(object.finish())
    }

    /// A table; where it has no rows, a remark in its place.
    pub(crate) fn table(&mut self, table: &Table, none: &str) -> Result {
        if table.is_empty() {
            self.remark(none);
            return Ok(());
        }
        let lines = table.lines(self.width);
        lines.into_iter().try_for_each(|line| self.line(line))
    }

    /// Hands on what was written so far.
    pub(crate) fn flush(&mut self) -> Result {
        self.writer.flush()?;
        Ok(())
    }

    /// Says something beside the output. What cannot be said there is not said.
    pub(crate) fn remark(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{}", paint(DIM, printable_lines(text)));
    }

    pub(crate) fn warn(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{} {}", paint(CARE.bold(), "warning:"), printable_lines(text));
    }

    pub(crate) fn error(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{} {}", paint(BAD.bold(), "error:"), printable_lines(text));
    }

    /// Asks for a yes where somebody can answer; where nobody can, it is taken as given.
    pub(crate) fn confirm(&mut self, question: &str, yes: bool) -> Result<bool> {
        if yes || !self.interactive {
            return Ok(true);
        }
        self.flush()?;
        let _ = write!(self.remarks, "{} [y/N] ", printable(question));
        let _ = self.remarks.flush();
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        let sure = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
        if !sure {
            self.remark("nothing was changed");
        }
        Ok(sure)
    }
}

fn choice(color: clap::ColorChoice, stream: &impl anstream::stream::RawStream) -> ColorChoice {
    match color {
        clap::ColorChoice::Auto => AutoStream::choice(stream),
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    }
}

/// A text that is being written.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
