//! The log on standard error, for programs that have set up none: what fails must not fail in silence.

use crate::aside::{Aside, unlocked};
use crate::error::chain;
use crate::printable::printable;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Level, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;

/// Who writes the program's log, where it is the one that is set up here; none where that is whoever logs.
static SET_UP: OnceLock<Option<Aside>> = OnceLock::new();
/// Whether a bus of this program has started.
static SPEAKS: AtomicBool = AtomicBool::new(false);
/// Where lines of a bus go that nobody else listens to.
static OURS: OnceLock<Ours> = OnceLock::new();

/// The packages of the brokers' clients, beside those of AWS.
const CLIENTS: [&str; 5] = ["async_nats", "redis", "lapin", "rdkafka", "librdkafka"];

/// How long the end of a bus waits for whoever reads its lines, for each of them.
const LAST_LINES: Duration = Duration::from_millis(100);

struct Ours {
    dispatch: Dispatch,
    aside: Option<Aside>,
}

/// Writes what the program logs from this level up to standard error, unless it has a `tracing` subscriber already.
pub fn log_to_stderr(level: Level) {
    if is_heard() {
        return;
    }
    let (stream, aside) = stream();
    set_up(subscriber(stream, io::stderr().is_terminal(), level), aside);
}

/// Writes what the program logs from this level up to a stream of standard error, unless it has a `tracing` subscriber
/// already.
pub fn log_to(stream: impl for<'a> MakeWriter<'a> + Send + Sync + 'static, colour: bool, level: Level) {
    set_up(subscriber(stream, colour, level), None);
}

fn set_up(subscriber: impl Subscriber + Send + Sync, aside: Option<Aside>) {
    // Another thread may have set one up meanwhile.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = SET_UP.set(aside);
    }
}

/// From now on, the warnings and errors of buses go to standard error where nobody listens to them.
///
/// No subscriber is set for that: a program may set up its log after its bus has started, and a second one is refused.
pub(crate) fn speak_up() {
    SPEAKS.store(true, Ordering::Relaxed);
}

/// Whether somebody listens to the log on this thread: for the whole program, or for a scope of this thread. A scope of
/// another one is of no use here. Who wants silence has set up a `NoSubscriber`, which counts as one that listens.
pub(crate) fn is_heard() -> bool {
    tracing::dispatcher::has_been_set() && !tracing::dispatcher::get_default(is_nobody)
}

/// Whether this stands for nobody at all: the one that `tracing` has where none was set, and not one like it.
fn is_nobody(dispatch: &Dispatch) -> bool {
    let nobody = Dispatch::none();
    match (dispatch.downcast_ref::<NoSubscriber>(), nobody.downcast_ref::<NoSubscriber>()) {
        (Some(here), Some(nobody)) => ptr::eq(here, nobody),
        _ => false,
    }
}

/// Writes a line to whoever listens, or else to standard error, where a bus has started. For the macros of `log.rs`.
pub fn or_to_stderr(write: impl FnOnce()) {
    if SPEAKS.load(Ordering::Relaxed) { insist(write) } else { write() }
}

/// Writes a line to whoever listens, or else to standard error, although no bus may have started: what says that nobody
/// has started it would not be read otherwise.
pub(crate) fn insist(write: impl FnOnce()) {
    if is_heard() {
        return write();
    }
    let ours = OURS.get_or_init(|| {
        let (stream, aside) = stream();
        let subscriber = subscriber(stream, io::stderr().is_terminal(), Level::WARN);
        Ours { dispatch: Dispatch::new(subscriber), aside }
    });
    tracing::dispatcher::with_default(&ours.dispatch, write);
}

/// Waits for the lines of a bus that ends, since its program may end with it; not for long, as nobody may read them.
pub(crate) fn wait() {
    let asides = [OURS.get().and_then(|ours| ours.aside.as_ref()), SET_UP.get().and_then(Option::as_ref)];
    asides.into_iter().flatten().for_each(|aside| aside.wait(Some(LAST_LINES)));
}

/// Standard error, written to by a thread of its own. Without a thread, whoever logs waits for whoever reads.
fn stream() -> (BoxMakeWriter, Option<Aside>) {
    match Aside::new(unlocked(io::stderr()), true) {
        Ok(aside) => {
            let kept = aside.clone();
            (BoxMakeWriter::new(move || aside.clone()), Some(kept))
        }
        Err(_) => (BoxMakeWriter::new(io::stderr), None),
    }
}

fn subscriber(
    stream: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
    colour: bool,
    level: Level,
) -> impl Subscriber + Send + Sync {
    tracing_subscriber::fmt()
        .fmt_fields(PrintableFields)
        .with_writer(stream)
        .with_ansi(colour)
        .with_max_level(level)
        .finish()
        .with(filter_fn(move |line| *line.level() <= most(line.target(), level)).with_max_level_hint(level))
}

/// The level up to which lines of this target are written. The clients of brokers say less than the rest of the program:
/// what they tell at each try to connect is told by the bus once.
fn most(target: &str, level: Level) -> Level {
    let package = target.split("::").next().unwrap_or(target);
    let is_client = CLIENTS.contains(&package) || package.starts_with("aws_");
    if is_client { level.min(Level::WARN) } else { level }
}

/// Whether an error line of the log is seen on standard error already.
pub(crate) fn shows_log() -> bool {
    SET_UP.get().is_some()
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
    use crate::log::captured::Captured;

    #[test]
    fn the_clients_of_brokers_are_heard_from_warnings_up_and_everybody_else_as_asked() {
        let log = Captured::default();
        let writer = log.clone();
        let subscriber = subscriber(move || writer.clone(), false, Level::INFO);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "async_nats", "hidden");
            tracing::info!(target: "redis::aio", "hidden");
            tracing::info!(target: "lapin::channel", "hidden");
            tracing::info!(target: "rdkafka::client", "hidden");
            tracing::info!(target: "aws_smithy_runtime::client", "hidden");
            tracing::debug!(target: "shop", "hidden");
            tracing::warn!(target: "async_nats", "shown 1");
            tracing::error!(target: "aws_sdk_sqs", "shown 2");
            tracing::info!(target: "eventbus", "shown 3");
            tracing::info!(target: "redis_orders", "shown 4");
        });
        let log = log.take();
        assert!(!log.contains("hidden") && log.matches("shown").count() == 4, "{log}");
        assert_eq!(most("async_nats", Level::ERROR), Level::ERROR);
    }

    #[test]
    fn a_handler_that_logs_what_an_event_holds_writes_one_line() {
        let hostile = "a\nERROR all is lost \u{1b}[2J\u{9b}2J\u{202e}";
        let log = Captured::default();
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
        let log = log.take();
        assert_eq!(log.lines().count(), 2, "{log}");
        assert!(!log.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{log:?}");
        let written = r"a\nERROR all is lost \u{1b}[2J\u{9b}2J\u{202e}";
        assert!(
            log.contains(&format!("said {written}")) && log.contains(&format!("error={written}")),
            "{log}"
        );
    }
}
