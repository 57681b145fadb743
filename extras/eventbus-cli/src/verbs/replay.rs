//! `replay`: delivers a part of the history again, to one group.

use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{BAD, GOOD, Output, paint};
use crate::session::Session;
use crate::signals::Signals;
use crate::text::{count, counted};
use crate::when;
use eventbus_core::broker::{DeadLetter, ReplayFrom, ReplayUntil};
use eventbus_core::choice::choice;
use eventbus_core::printable::printable;
use eventbus_core::{ReplayProgress, ReplayReport, census};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::future::IntoFuture;
use std::io::{self, IsTerminal};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::mpsc::unbounded_channel;

/// How long handlers have after a signal.
const LAST_HANDLERS: Duration = Duration::from_millis(400);
/// How long a terminal has to clear a line.
const CLEARED: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Replay {
    /// The group
    group: String,
    /// Where to begin: `earliest`, an offset, or a time (RFC 3339, a day, or how long ago: `2h`)
    #[arg(long, value_name = "PLACE", default_value = "earliest", value_parser = when::from, allow_hyphen_values = true)]
    from: ReplayFrom,
    /// Where to end: `now`, `live` (never), an offset, or a time
    #[arg(long, value_name = "PLACE", default_value = "now", value_parser = when::until, allow_hyphen_values = true)]
    until: ReplayUntil,
    /// How many events are delivered in a second at most
    #[arg(long, value_name = "EVENTS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Also where a handler is registered with `replay = false`, as one with effects outside is
    #[arg(long)]
    insist: bool,
    /// Take events that fail for no error
    #[arg(long)]
    skip_failures: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Replay {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        self.check()?;
        session.expect_log();
        // An `only` of the application would keep the group out.
        let builder = std::mem::take(&mut session.builder).without_subscriptions();
        let bus = builder.only([&self.group]).connect(&session.url).await?;
        let out = &mut session.out;
        let replaying = || bus.replay(&self.group).from(self.from).until(self.until);
        let question = self.question(replaying().events().await?);
        if !out.confirm(&question, self.yes)? {
            return Ok(bus.shutdown().await?);
        }
        out.beside_handlers()?;
        let bar = Bar::begin(!out.json);
        let (tell, mut told) = unbounded_channel();
        let mut replaying = replaying().skip_failures().on_progress(move |progress| {
            // Nobody listens any more once the replay has been ended.
            let _ = tell.send(*progress);
        });
        if let Some(rate) = self.rate {
            replaying = replaying.rate(rate);
        }
        if self.insist {
            replaying = replaying.insist();
        }
        let mut signals = Signals::listen().await?;
        let mut replaying = replaying.into_future();
        let mut latest = None;
        let report = loop {
            tokio::select! {
                biased;
                Some(progress) = told.recv() => {
                    show(out, &bar, &progress)?;
                    latest = Some(progress);
                }
                report = &mut replaying => break Ok(report?),
                signal = signals.first() => break Err(signal),
            }
        };
        while let Ok(progress) = told.try_recv() {
            show(out, &bar, &progress)?;
        }
        bar.end();
        let report = match report {
            Ok(report) => report,
            Err(signal) => {
                drop(replaying);
                let live = self.until == ReplayUntil::Live;
                if !live {
                    // At once, since there is not much time.
                    out.error(&how_far(latest));
                }
                // What it has not handled is as it was, so handlers that need longer than a moment are left.
                let _ = tokio::time::timeout(LAST_HANDLERS, bus.shutdown()).await;
                return if live { Ok(()) } else { Err(Failure::Ended(signal)) };
            }
        };
        // Handlers that run finish.
        bus.shutdown().await?;
        for failure in &report.failures {
            show_failure(out, failure)?;
        }
        if out.json {
            out.object(Object::new().object("report", of_report(&report)))?;
        } else {
            let (events, group) = (counted(report.events, "event"), printable(&self.group));
            let done = paint(GOOD, "replayed");
            out.line(format_args!("{done} {events} to {group} in {:.1?}", report.elapsed))?;
        }
        if report.is_complete() || self.skip_failures && report.acked + report.failed == report.events {
            return Ok(());
        }
        let failed = count(report.events - report.acked);
        let events = counted(report.events, "event");
        let edit = session.command(&["dead-letters", "list", "--group", &self.group]);
        Err(Failure::new(format!(
            "{failed} of {events} failed and became no dead letters: mend the handler, or what they hold \
             ({edit} lists what `dead-letters edit` mends), and replay again, or take that for no error (--skip-failures)"
        )))
    }

    /// What is asked before: a handler does again what it did, to the world outside as well.
    fn question(&self, events: u64) -> String {
        let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
        let handlers = subscriptions
            .filter(|subscription| subscription.group == self.group)
            .map(|subscription| format!("`{}` ({})", subscription.name, subscription.location()));
        let handlers: Vec<_> = handlers.collect();
        let whose = if handlers.len() == 1 { "its" } else { "their" };
        let live = if self.until == ReplayUntil::Live { " and what is published from now on" } else { "" };
        let (events, handlers) = (counted(events, "event"), handlers.join(", "));
        format!("replay {events}{live} to {handlers}, where {whose} effects happen again?")
    }

    /// Says what is wrong in the words of the command line.
    fn check(&self) -> Result {
        let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
        let of_group: Vec<_> =
            subscriptions.clone().filter(|subscription| subscription.group == self.group).collect();
        if of_group.is_empty() {
            let known = subscriptions.map(|subscription| &*subscription.group);
            return Err(Failure::not_found(format!(
                "this program has no group `{}`; {}{}",
                printable(&self.group),
                choice(&self.group, known),
                census::unlinked(&self.group)
            )));
        }
        match of_group.iter().find(|subscription| subscription.options.replay == Some(false)) {
            Some(subscription) if !self.insist => Err(Failure::new(format!(
                "`{}` ({}) is registered with `replay = false`, as a handler with effects outside is; \
                 --insist runs it all the same",
                subscription.name,
                subscription.location()
            ))),
            _ => Ok(()),
        }
    }
}

/// Writes how far the replay is.
fn show(out: &mut Output, bar: &Bar, progress: &ReplayProgress) -> Result {
    bar.draw(progress);
    if out.json {
        out.object(Object::new().object("progress", of_progress(progress)))?;
        out.flush()?;
    }
    Ok(())
}

/// Writes what failed, and why.
fn show_failure(out: &mut Output, failure: &DeadLetter) -> Result {
    if out.json {
        return out.object(Object::new().object("failure", of_failure(failure)));
    }
    let (topic, offset) = (printable(failure.envelope.topic()), printable(failure.offset));
    let (kind, reason) = (printable(failure.kind), printable(&failure.reason));
    out.line(format_args!("{} {topic} at {offset}, {kind}: {reason}", paint(BAD, "failed")))
}

/// What is said of a replay that a signal ended.
fn how_far(latest: Option<ReplayProgress>) -> String {
    let came = latest.map(|progress| {
        format!("; {} of {} were handled", count(progress.handled), counted(progress.events, "event"))
    });
    format!("the replay was ended before it was through{}", came.unwrap_or_default())
}

/// The progress on a terminal, drawn by a thread of its own: a terminal can be stopped, and handlers go on.
struct Bar(Option<(mpsc::Sender<ReplayProgress>, mpsc::Receiver<()>)>);

impl Bar {
    fn begin(wanted: bool) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self(None);
        }
        let (draw, drawn) = mpsc::channel::<ReplayProgress>();
        let (cleared, clears) = mpsc::channel();
        let thread = move || {
            let bar = progress_bar();
            drawn.into_iter().for_each(|progress| draw_on(&bar, &progress));
            bar.finish_and_clear();
            drop(cleared);
        };
        let thread = std::thread::Builder::new().name("eventbus-progress".to_owned()).spawn(thread);
        Self(thread.ok().map(|_| (draw, clears)))
    }

    fn draw(&self, progress: &ReplayProgress) {
        if let Some((draw, _)) = &self.0 {
            // A thread that has ended draws nothing more.
            let _ = draw.send(*progress);
        }
    }

    /// Clears the line.
    fn end(self) {
        if let Some((draw, clears)) = self.0 {
            drop(draw);
            let _ = clears.recv_timeout(CLEARED);
        }
    }
}

fn progress_bar() -> ProgressBar {
    // The numbers take some sixty columns.
    let width = console::Term::stderr().size().1.saturating_sub(62).clamp(8, 32);
    let style = ProgressStyle::with_template(&format!("{{bar:{width}.cyan}} {{percent:>3}}%  {{msg}}"));
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
}

fn draw_on(bar: &ProgressBar, progress: &ReplayProgress) {
    bar.set_length(progress.events.max(progress.handled));
    bar.set_position(progress.handled);
    let left = progress.remaining().map(|left| format!(", {}s left", left.as_secs())).unwrap_or_default();
    bar.set_message(format!(
        "{} of {}  {}/s{left}",
        count(progress.handled),
        counted(progress.events.max(progress.handled), "event"),
        count(progress.rate() as u64)
    ));
}

fn of_progress(progress: &ReplayProgress) -> Object {
    let remaining =
        progress.remaining().map_or("null".to_owned(), |left| format!("{:.3}", left.as_secs_f64()));
    Object::new()
        .number("handled", progress.handled)
        .number("events", progress.events)
        .number("failed", progress.failed)
        .raw("percent", &format!("{:.1}", progress.percent()))
        .raw("rate", &format!("{:.1}", progress.rate()))
        .raw("elapsed", &format!("{:.3}", progress.elapsed.as_secs_f64()))
        .raw("remaining", &remaining)
}

fn of_failure(failure: &DeadLetter) -> Object {
    Object::new()
        .text("offset", failure.offset.to_string())
        .text("topic", failure.envelope.topic().as_str())
        .text("id", failure.envelope.id().to_string())
        .text("kind", failure.kind.as_str())
        .text("reason", &failure.reason)
        .number("attempts", failure.attempts)
}

fn of_report(report: &ReplayReport) -> Object {
    Object::new()
        .number("events", report.events)
        .number("acked", report.acked)
        .number("failed", report.failed)
        .raw("elapsed", &format!("{:.3}", report.elapsed.as_secs_f64()))
        .optional("latest", report.latest.map(|offset| offset.to_string()))
}
