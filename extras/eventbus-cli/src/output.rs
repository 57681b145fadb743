//! What a verb writes: for people with colour and in columns, or with `--json` one object per line.
//!
//! The locks of the standard streams belong to the program, whose handlers print as they like. So nothing here holds one:
//! a stream is written through a descriptor of its own, and beside handlers by a thread of its own.

use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::table::Table;
use crate::text::{self, printable_lines};
use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use eventbus_core::aside::{Aside, unlocked};
use eventbus_core::printable::printable;
use jiff::Timestamp;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

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

/// How long each of the last remarks is waited for, where nobody reads them.
const REMARKS: Duration = Duration::from_millis(300);

/// Where a verb writes to: standard output, with remarks on standard error.
pub(crate) struct Output {
    pub(crate) json: bool,
    /// How many columns there are, where the output is a terminal.
    pub(crate) width: Option<usize>,
    /// Whether times are written as people say them.
    relative: bool,
    writer: BufWriter<Stream>,
    remarks: Stream,
    /// The threads that write both, where handlers run.
    asides: Option<Asides>,
    /// Whether a person can see and answer what is asked.
    pub(crate) interactive: bool,
}

type Stream = Box<dyn Write + Send>;

struct Asides {
    output: Aside,
    remarks: Aside,
}

impl Output {
    pub(crate) fn standard(json: bool, color: clap::ColorChoice, absolute_times: bool) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let terminal = out.is_terminal();
        // Progress bars decide by themselves otherwise.
        console::set_colors_enabled_stderr(choice(color, &err) != ColorChoice::Never);
        let width = terminal.then(columns);
        let interactive = io::stdin().is_terminal() && err.is_terminal();
        let (out_choice, err_choice) = (choice(color, &out), choice(color, &err));
        Self {
            json,
            width,
            relative: terminal && !absolute_times,
            writer: BufWriter::new(Box::new(AutoStream::new(unlocked(out), out_choice))),
            remarks: Box::new(AutoStream::new(unlocked(err), err_choice)),
            asides: None,
            interactive,
        }
    }

    /// Output into two texts, what is written and what is remarked; as on a terminal of some width, or as into a pipe.
    #[cfg(test)]
    pub(crate) fn captured(json: bool, width: Option<usize>, out: Captured, remarks: Captured) -> Self {
        Self {
            json,
            width,
            relative: width.is_some(),
            writer: BufWriter::new(Box::new(out)),
            remarks: Box::new(remarks),
            asides: None,
            interactive: false,
        }
    }

    /// A time, as a table has it.
    pub(crate) fn time(&self, time: Timestamp) -> String {
        if self.relative { text::ago(time, now()) } else { text::time(time) }
    }

    /// A time in lines that stay, where how long ago soon says nothing.
    pub(crate) fn moment(&self, time: Timestamp) -> String {
        if self.relative { text::moment(time, now()) } else { text::time(time) }
    }

    /// A time in full.
    pub(crate) fn full_time(&self, time: Timestamp) -> String {
        if self.relative { format!("{time} ({})", text::ago(time, now())) } else { time.to_string() }
    }

    /// From now on, handlers run: threads of their own write, so that no handler waits for whoever reads. Answers with
    /// the stream of the remarks.
    pub(crate) fn beside_handlers(&mut self) -> Result<Aside> {
        if self.asides.is_none() {
            let nothing = || Box::new(io::sink()) as Stream;
            let written = std::mem::replace(&mut self.writer, BufWriter::new(nothing()));
            let output = written.into_inner().map_err(io::IntoInnerError::into_error)?;
            // What is left out would have been superseded, and a note would be no object.
            let output = Aside::new(output, false)?;
            let remarks = Aside::new(std::mem::replace(&mut self.remarks, nothing()), true)?;
            self.writer = BufWriter::new(Box::new(output.clone()));
            self.remarks = Box::new(remarks.clone());
            self.asides = Some(Asides { output, remarks });
        }
        match &self.asides {
            Some(asides) => Ok(asides.remarks.clone()),
            None => unreachable!("they were just set"),
        }
    }

    /// Writes what is left to write, and waits for whoever reads it; for who reads the remarks no more than a moment.
    pub(crate) fn end(&mut self) -> Result {
        self.flush()?;
        if let Some(asides) = &self.asides {
            asides.output.wait(None);
            asides.remarks.wait(Some(REMARKS));
        }
        Ok(())
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
        self.tell(paint(DIM, printable_lines(text)));
    }

    pub(crate) fn warn(&mut self, text: &str) {
        self.tell(format_args!("{} {}", paint(CARE.bold(), "warning:"), printable_lines(text)));
    }

    pub(crate) fn error(&mut self, text: &str) {
        self.tell(format_args!("{} {}", paint(BAD.bold(), "error:"), printable_lines(text)));
    }

    /// In one piece, so that nothing of others comes between, and after what was written before it.
    fn tell(&mut self, line: impl Display) {
        // Whoever ends the verb meets the error.
        let _ = self.writer.flush();
        let _ = self.remarks.write_all(format!("{line}\n").as_bytes());
    }

    /// Asks for a yes to what cannot be undone. Where nobody can answer, it has to be given before.
    pub(crate) fn confirm(&mut self, question: &str, yes: bool) -> Result<bool> {
        if yes {
            return Ok(true);
        }
        if !self.interactive {
            return Err(Failure::Usage(format!(
                "{} Nobody can answer here, since this is no terminal: --yes does it",
                printable(question)
            )));
        }
        self.flush()?;
        let _ = self.remarks.write_all(format!("{} [y/N] ", printable(question)).as_bytes());
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

/// How wide the terminal is. Who exports `COLUMNS` wants it so.
pub(crate) fn columns() -> usize {
    let wanted = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    wanted.filter(|columns| *columns > 0).unwrap_or_else(columns_of_terminal)
}

/// What the terminal says; one may say how wide it is and not how high.
#[cfg(unix)]
fn columns_of_terminal() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()).map(|size| size.ws_col) {
        Ok(columns @ 1..) => columns.into(),
        _ => usize::from(console::Term::stdout().size().1),
    }
}

#[cfg(not(unix))]
fn columns_of_terminal() -> usize {
    usize::from(console::Term::stdout().size().1)
}

#[cfg(not(test))]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A moment at which captures are always taken.
#[cfg(test)]
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(crate::captures::NOW).unwrap()
}

fn choice(color: clap::ColorChoice, stream: &impl RawStream) -> ColorChoice {
    match color {
        clap::ColorChoice::Auto => AutoStream::choice(stream),
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    }
}

/// A text that is being written.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Captured(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_comes_after_what_was_written_before_it() {
        let terminal = Captured::default();
        let mut out = Output::captured(false, Some(80), terminal.clone(), terminal.clone());
        out.line("delivered again").unwrap();
        out.remark("nobody handles it now");
        out.line("and more").unwrap();
        out.end().unwrap();
        let seen = console::strip_ansi_codes(&terminal.text()).into_owned();
        assert_eq!(seen, "delivered again\nnobody handles it now\nand more\n");
    }
}
