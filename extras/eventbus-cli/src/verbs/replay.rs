//! `replay`: delivers a part of the history again, to one group.

use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{GOOD, paint};
use crate::session::Session;
use crate::text::{count, counted};
use crate::when;
use eventbus_core::broker::{ReplayFrom, ReplayUntil};
use eventbus_core::printable::printable;
use eventbus_core::{ReplayProgress, ReplayReport, census};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::future::IntoFuture;
use std::io::{self, IsTerminal};
use tokio::sync::mpsc::unbounded_channel;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Replay {
    /// The group
    group: String,
    /// Where to begin: `beginning`, an offset, or a time (RFC 3339, a day, or how long ago: `2h`)
    #[arg(long, value_name = "PLACE", default_value = "beginning", value_parser = when::from)]
    from: ReplayFrom,
    /// Where to end: `now`, `live` (never), an offset, or a time
    #[arg(long, value_name = "PLACE", default_value = "now", value_parser = when::until)]
    until: ReplayUntil,
    /// How many events are delivered in a second at most
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Also where a handler is registered with `replay = false`, as one with effects outside is
    #[arg(long)]
    insist: bool,
}

impl Replay {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        self.check()?;
        // An `only` of the application would keep the group out.
        let builder = std::mem::take(&mut session.builder).without_subscriptions();
        let bus = builder.only([&self.group]).connect(&session.url).await?;
        let out = &mut session.out;
        let bar = if out.json { ProgressBar::hidden() } else { progress_bar() };
        let (tell, mut told) = unbounded_channel();
        let (drawn, json) = (bar.clone(), out.json);
        let mut replaying =
            bus.replay(&self.group).from(self.from).until(self.until).on_progress(move |progress| {
                draw(&drawn, progress);
                if json {
                    // Nobody listens any more once the reader of the output is gone.
                    let _ = tell.send(*progress);
                }
            });
        if let Some(rate) = self.rate {
            replaying = replaying.rate(rate);
        }
        if self.insist {
            replaying = replaying.insist();
        }
        let mut replaying = std::pin::pin!(replaying.into_future());
        let report = loop {
            tokio::select! {
                biased;
                Some(progress) = told.recv() => {
                    out.object(Object::new().object("progress", of_progress(&progress)))?;
                    out.flush()?;
                }
                report = &mut replaying => break Some(report?),
                _ = tokio::signal::ctrl_c() => break None,
            }
        };
        bar.finish_and_clear();
        while let Ok(progress) = told.try_recv() {
            out.object(Object::new().object("progress", of_progress(&progress)))?;
        }
        // Handlers that run finish.
        bus.shutdown().await?;
        let Some(report) = report else {
            let live = self.until == ReplayUntil::Live;
            return if live {
                Ok(())
            } else {
                Err(Failure::new("the replay was ended before it was through"))
            };
        };
        if out.json {
            out.object(Object::new().object("report", of_report(&report)))?;
        } else {
            let (events, group) = (counted(report.events, "event"), printable(&self.group));
            let done = paint(GOOD, "replayed");
            out.line(format_args!("{done} {events} to {group} in {:.1?}", report.elapsed))?;
        }
        if report.is_complete() {
            return Ok(());
        }
        let failed = count(report.events - report.acked);
        let events = counted(report.events, "event");
        Err(Failure::new(format!(
            "{failed} of {events} failed; see `dead-letters list --group {}`",
            printable(&self.group)
        )))
    }

    /// Says what is wrong in the words of the command line.
    fn check(&self) -> Result {
        let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
        let of_group: Vec<_> =
            subscriptions.clone().filter(|subscription| subscription.group == self.group).collect();
        if of_group.is_empty() {
            let known: Vec<_> =
                subscriptions.map(|subscription| format!("`{}`", subscription.group)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Failure::not_found(format!(
                "this program has no group `{}`; its groups are: {known}",
                printable(&self.group)
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

fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:32.cyan} {percent:>3}%  {human_pos} of {human_len} events  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
}

fn draw(bar: &ProgressBar, progress: &ReplayProgress) {
    bar.set_length(progress.events.max(progress.handled));
    bar.set_position(progress.handled);
    let left = progress.remaining().map(|left| format!(", {}s left", left.as_secs())).unwrap_or_default();
    bar.set_message(format!("{}/s{left}", count(progress.rate() as u64)));
}

fn of_progress(progress: &ReplayProgress) -> Object {
    let remaining =
        progress.remaining().map_or("null".to_owned(), |left| format!("{:.3}", left.as_secs_f64()));
    Object::new()
        .number("handled", progress.handled)
        .number("events", progress.events)
        .number("dead_lettered", progress.dead_lettered)
        .raw("percent", &format!("{:.1}", progress.percent()))
        .raw("rate", &format!("{:.1}", progress.rate()))
        .raw("elapsed", &format!("{:.3}", progress.elapsed.as_secs_f64()))
        .raw("remaining", &remaining)
}

fn of_report(report: &ReplayReport) -> Object {
    Object::new()
        .number("events", report.events)
        .number("acked", report.acked)
        .number("dead_lettered", report.dead_lettered)
        .raw("elapsed", &format!("{:.3}", report.elapsed.as_secs_f64()))
        .optional("latest", report.latest.map(|offset| offset.to_string()))
}
