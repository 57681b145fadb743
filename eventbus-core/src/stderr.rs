//! The log on standard error, for programs that have set up none: what fails must not fail in silence.

use crate::aside::{Aside, unlocked};
use crate::error::chain;
use crate::printable::printable;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

/// Whether the program's log is the one that is set up here.
static SET_UP: AtomicBool = AtomicBool::new(false);

/// Writes what the program logs from this level up to standard error, unless it has a `tracing` subscriber already.
pub fn log_to_stderr(level: Level) {
    if tracing::dispatcher::has_been_set() {
        return;
    }
    let colour = io::stderr().is_terminal();
    // Without a thread, whoever logs waits for whoever reads.
    match Aside::new(unlocked(io::stderr()), true) {
        Ok(aside) => log_to(move || aside.clone(), colour, level),
        Err(_) => log_to(io::stderr, colour, level),
    }
}

/// Writes what the program logs from this level up to a stream of standard error, unless it has a `tracing` subscriber
/// already.
pub fn log_to(stream: impl for<'a> MakeWriter<'a> + Send + Sync + 'static, colour: bool, level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .fmt_fields(PrintableFields)
        .with_writer(stream)
        .with_ansi(colour)
        .with_max_level(level)
        .finish();
    // Another thread may have set one up meanwhile.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        SET_UP.store(true, Ordering::Relaxed);
    }
}

/// Whether an error line of the log is seen on standard error already.
pub(crate) fn shows_log() -> bool {
    SET_UP.load(Ordering::Relaxed)
}

/// Fields as tracing writes them, each on one line whatever it quotes: handlers log as well, and they quote events.
struct PrintableFields;

impl<'writer> FormatFields<'writer> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut fields_of_a_line = PrintableVisitor(DefaultVisitor::new(writer, true));
        fields.record(&mut fields_of_a_line);
        fields_of_a_line.0.finish()
    }
}

struct PrintableVisitor<'writer>(DefaultVisitor<'writer>);

impl Visit for PrintableVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.record_debug(field, &printable(format_args!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.record_debug(field, &printable(value));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.0.record_debug(field, &printable(chain(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_handler_that_logs_what_an_event_holds_writes_one_line() {
        let hostile = "a\nERROR all is lost \u{1b}[2J\u{9b}2J\u{202e}";
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(PrintableFields)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = io::Error::other(hostile);
            let _span = tracing::info_span!("handle", name = hostile, shown = %hostile).entered();
            tracing::info!(
                text = hostile, shown = %hostile, error = &error as &(dyn Error + 'static), "said {hostile}"
            );
            tracing::info!(message = hostile);
        });
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
        assert!(!log.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{log:?}");
        let written = r"a\nERROR all is lost \u{1b}[2J\u{9b}2J\u{202e}";
        assert!(
            log.contains(&format!("said {written}")) && log.contains(&format!("error={written}")),
            "{log}"
        );
    }
}
