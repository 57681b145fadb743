//! `dead-letters`: what subscriptions gave up on.

use super::{log, publish};
use crate::editor;
use crate::event::{self, Facts};
use crate::failure::{Failure, Result};
use crate::json::{self, Object};
use crate::output::{BAD, DIM, GOOD, TOPIC, paint};
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::text::counted;
use bytes::Bytes;
use eventbus_core::broker::{
    DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters as Store, FailureKind,
};
use eventbus_core::choice::{choice, meant};
use eventbus_core::printable::printable;
use eventbus_core::{Bus, Envelope, Pattern, census};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

const COLUMNS: &[Column] = &[
    Column::number("ID"),
    Column::name("GROUP"),
    Column::name("TOPIC").goes(1),
    Column::id("KEY").goes(2),
    Column::whole("KIND").goes(3),
    Column::number("ATTEMPTS").goes(4),
    Column::whole("FAILED"),
    Column::text("REASON"),
];

/// What is said where there are none.
const NONE: &str = "there are no such dead letters";

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum DeadLetters {
    /// List dead letters, oldest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only those behind this one: the next page
        #[arg(long, value_name = "ID", value_parser = letter_id, allow_negative_numbers = true)]
        after: Option<DeadLetterId>,
        /// At most so many; for people 100 where nothing is said, with `--json` all of them
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        limit: Option<usize>,
    },
    /// Show a dead letter in full
    Show {
        /// Its name in the list
        #[arg(value_parser = letter_id)]
        id: DeadLetterId,
    },
    /// Mend the payload of a dead letter in $EDITOR, and deliver it again
    Edit {
        /// Its name in the list
        #[arg(value_parser = letter_id)]
        id: DeadLetterId,
        /// Take the payload from a file, or with `-` from standard input, in place of an editor
        #[arg(long, value_name = "FILE")]
        payload: Option<PathBuf>,
        /// Deliver also what the event type of this program cannot read, which its handlers give up
        #[arg(long)]
        unchecked: bool,
    },
    /// Deliver dead letters again, each to the group that gave it up; asks first unless one is named, and needs --yes
    /// where nobody can answer
    Republish(Many),
    /// Remove dead letters for good; asks first, and needs --yes where nobody can answer
    Purge(Many),
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only those that this group gave up
    #[arg(long)]
    group: Option<String>,
    /// Only those on these topics: `order.placed`, `order.>`
    #[arg(long, value_name = "PATTERN")]
    topic: Option<Pattern>,
    /// Only those that were given up for this reason
    #[arg(long, value_parser = kind)]
    kind: Option<FailureKind>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Many {
    /// Their names in the list
    #[arg(value_parser = letter_id, value_name = "ID")]
    ids: Vec<DeadLetterId>,
    #[command(flatten)]
    filter: Filter,
    /// All of them
    #[arg(long, conflicts_with_all = ["ids", "group", "topic", "kind"])]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

fn letter_id(text: &str) -> Result<DeadLetterId, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("a dead letter is named as in the first column of `dead-letters list`".to_owned());
    }
    Ok(DeadLetterId::new(text))
}

fn kind(text: &str) -> Result<FailureKind, String> {
    FailureKind::parse(text).ok_or_else(|| {
        "a kind is one of failed, rejected, panicked, timed-out, undecodable, unknown-type, crashed, damaged"
            .to_owned()
    })
}

impl Filter {
    /// What to say where nothing is found; an error where the group or the topic is a slip.
    async fn none(&self, bus: &Bus, store: &dyn Store) -> Result<String> {
        let letters = store.find(DeadLetterQuery::default()).await?;
        if let Some(group) = &self.group {
            let mut known: BTreeSet<_> = letters.iter().map(|(_, letter)| letter.group.clone()).collect();
            known.extend(census::subscribers().iter().map(|one| one.subscription.group.to_string()));
            let kept = match bus.groups() {
                Ok(groups) => groups.list().await.ok(),
                // Of other groups it has nothing.
                Err(_) => Some(Vec::new()),
            };
            // Where the broker does not say which it has, the group may be one of these.
            let all = kept.map(|kept| known.extend(kept.into_iter().map(|state| state.group)));
            if all.is_some() && !known.is_empty() && !known.contains(group) {
                let choice = choice(group, known.iter().map(String::as_str));
                return Err(Failure::not_found(format!("there is no group `{group}`; {choice}")));
            }
        }
        let Some(topic) = &self.topic else { return Ok(NONE.to_owned()) };
        let topics: BTreeSet<_> =
            letters.iter().map(|(_, letter)| letter.envelope.topic().as_str()).collect();
        if topics.iter().any(|known| topic.matches(known)) {
            return Ok(NONE.to_owned());
        }
        if let Some(doubt) = publish::doubt(topic) {
            return Err(Failure::not_found(doubt));
        }
        match meant(topic.as_str(), topics.iter().copied()) {
            meant if meant.is_empty() => Ok(NONE.to_owned()),
            meant => Err(Failure::not_found(format!("there is no dead letter on \"{topic}\"{meant}"))),
        }
    }

    fn query(self) -> DeadLetterQuery {
        let mut query = DeadLetterQuery::default();
        (query.group, query.pattern, query.kind) = (self.group, self.topic, self.kind);
        query
    }
}

impl Many {
    /// Of those that nothing is said of, nothing is done.
    fn expect_some(&self) -> Result {
        let Filter { group, topic, kind } = &self.filter;
        if self.all || !self.ids.is_empty() || group.is_some() || topic.is_some() || kind.is_some() {
            return Ok(());
        }
        Err(Failure::Usage(
            "say which: their IDs in `dead-letters list`, or those of a --group, on a --topic or of a --kind, or --all"
                .to_owned(),
        ))
    }
}

impl DeadLetters {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        if let Self::Republish(many) | Self::Purge(many) = &self {
            many.expect_some()?;
        }
        let bus = session.look().await?;
        let store = bus.dead_letters()?;
        match self {
            Self::List { filter, after, limit } => {
                list(session, &bus, filter, after, limit).await?;
            }
            Self::Show { id } => {
                let letter = find(session, &*store, &id).await?;
                show(session, &id, &letter)?;
            }
            Self::Edit { id, payload, unchecked } => edit(session, &bus, &id, payload, unchecked).await?,
            Self::Republish(many) => {
                let question = "deliver {} again?";
                change(session, &bus, many, Change { question, done: "delivered again", republish: true })
                    .await?;
            }
            Self::Purge(many) => {
                let question = "remove {} for good?";
                change(session, &bus, many, Change { question, done: "removed", republish: false }).await?;
            }
        }
        Ok(bus.shutdown().await?)
    }
}

async fn list(
    session: &mut Session,
    bus: &Bus,
    filter: Filter,
    after: Option<DeadLetterId>,
    limit: Option<usize>,
) -> Result {
    let store = bus.dead_letters()?;
    let mut query = filter.clone().query();
    query.after = after;
    let out = &mut session.out;
    let limit = limit.unwrap_or_else(|| log::limit(out));
    let mut table = Table::new(COLUMNS);
    let (mut seen, mut last) = (0, None);
    let more = loop {
        let page = log::PAGE.min(limit - seen);
        // One more tells whether there are more.
        query.limit = page + 1;
        let mut letters = store.find(query.clone()).await?;
        let more = letters.len() > page;
        letters.truncate(page);
        for (id, letter) in &letters {
            if out.json {
                out.object(object(id, letter)?)?;
                continue;
            }
            table.push(vec![
                cell(id.to_string()),
                cell(&letter.group),
                styled(TOPIC, letter.envelope.topic()),
                cell(letter.envelope.key().unwrap_or("-")),
                styled(BAD, letter.kind.as_str()),
                cell(letter.attempts.to_string()),
                styled(DIM, out.time(letter.last_failed_at)),
                cell(&letter.reason),
            ]);
        }
        (seen, last) = (seen + letters.len(), letters.pop().map(|(id, _)| id).or(last));
        if !more || seen == limit {
            break more;
        }
        query.after.clone_from(&last);
    };
    let none = if seen == 0 { filter.none(bus, &*store).await? } else { String::new() };
    if !out.json {
        out.table(&table, &none)?;
    }
    if let Some(last) = last.filter(|_| more) {
        out.flush()?;
        out.remark(&format!("there are more: --after {last}, or a higher --limit"));
    }
    Ok(())
}

fn object(id: &DeadLetterId, letter: &DeadLetter) -> Result<Object> {
    let event = event::object(Some(letter.offset), &letter.envelope)?;
    Ok(Object::new()
        .text("id", id.as_str())
        .text("group", &letter.group)
        .text("handler", &letter.handler)
        .text("kind", letter.kind.as_str())
        .text("reason", &letter.reason)
        .number("attempts", letter.attempts)
        .text("first_failed_at", letter.first_failed_at.to_string())
        .text("last_failed_at", letter.last_failed_at.to_string())
        .object("event", event))
}

fn show(session: &mut Session, id: &DeadLetterId, letter: &DeadLetter) -> Result {
    let out = &mut session.out;
    if out.json {
        return out.object(object(id, letter)?);
    }
    out.line(paint(BAD.bold(), format_args!("dead letter {id}")))?;
    let (first, last) = (out.full_time(letter.first_failed_at), out.full_time(letter.last_failed_at));
    let mut facts = Facts::new(out);
    facts.say("group", &letter.group)?;
    facts.say("handler", &letter.handler)?;
    facts.say("kind", letter.kind)?;
    facts.say("attempts", letter.attempts)?;
    facts.say("first failed", first)?;
    facts.say("last failed", last)?;
    facts.say("reason", &letter.reason)?;
    out.line("")?;
    event::show(out, Some(letter.offset), &letter.envelope)
}

async fn find(session: &Session, store: &dyn Store, id: &DeadLetterId) -> Result<Arc<DeadLetter>> {
    let mut query = DeadLetterQuery::default();
    (query.id, query.limit) = (Some(id.clone()), 1);
    match store.find(query).await?.pop() {
        Some((_, letter)) => Ok(letter),
        None => Err(missing(session, id)),
    }
}

fn missing(session: &Session, id: &DeadLetterId) -> Failure {
    let list = session.command(&["dead-letters", "list"]);
    Failure::not_found(format!("there is no dead letter {id} (any more); {list} shows those there are"))
}

async fn edit(
    session: &mut Session,
    bus: &Bus,
    id: &DeadLetterId,
    from: Option<PathBuf>,
    unchecked: bool,
) -> Result {
    let store = bus.dead_letters()?;
    let letter = find(session, &*store, id).await?;
    let envelope = &letter.envelope;
    let is_json = json::is_json(envelope.content_type());
    let payload = match from {
        Some(file) => editor::read(&file, is_json)?,
        None => match editor::edit(envelope.payload()?, is_json)? {
            Some(payload) => payload,
            None => {
                session.out.remark("the payload is as it was; nothing was delivered");
                return Ok(());
            }
        },
    };
    if is_json && let Err(error) = json::check(&payload) {
        return Err(Failure::new(format!("the new payload is no JSON: {error}; nothing was delivered")));
    }
    let payload = Bytes::from(payload);
    if !unchecked
        && let Some((event, Err(error))) =
            census::read(&Envelope::clone(envelope).with_payload(payload.clone()))
    {
        return Err(Failure::new(format!(
            "{error} ({}:{}); nothing was delivered; mend the payload, or deliver it all the same with --unchecked: \
             handlers give up such an event",
            event.file, event.line
        )));
    }
    if !store.republish(id, Some(payload)).await? {
        return Err(missing(session, id));
    }
    said(session, id, "delivered again", &letter.group)?;
    tell_idle(session, bus, &BTreeSet::from([letter.group.clone()])).await
}

/// Tells of groups whose dead letters were published again and that no process handles now.
async fn tell_idle(session: &mut Session, bus: &Bus, groups: &BTreeSet<String>) -> Result {
    // A broker that keeps no groups has none that wait.
    let Ok(keeper) = bus.groups() else { return Ok(()) };
    let states = keeper.list().await?;
    for group in groups {
        if !states.iter().any(|state| state.group == *group && state.active) {
            session.out.remark(&format!(
                "no process handles the group `{}` now; what was delivered again waits for one",
                printable(group)
            ));
        }
    }
    Ok(())
}

/// What happens to many dead letters.
struct Change {
    question: &'static str,
    done: &'static str,
    republish: bool,
}

async fn change(session: &mut Session, bus: &Bus, many: Many, change: Change) -> Result {
    let store = bus.dead_letters()?;
    let mut letters = DeadLetterList::new();
    let one_is_named = many.ids.len() == 1;
    if many.ids.is_empty() {
        letters = store.find(many.filter.clone().query()).await?;
    } else {
        let query = many.filter.clone().query();
        for id in many.ids {
            let letter = find(session, &*store, &id).await?;
            if !query.matches(&id, &letter) {
                return Err(Failure::not_found(format!(
                    "dead letter {id} is not among those that the options name"
                )));
            }
            letters.push((id, letter));
        }
    }
    if letters.is_empty() {
        let none = many.filter.none(bus, &*store).await?;
        session.out.remark(&none);
        return Ok(());
    }
    let question = change.question.replace("{}", &counted(letters.len() as u64, "dead letter"));
    let asks = !(change.republish && one_is_named);
    if asks && !session.out.confirm(&question, many.yes)? {
        return Ok(());
    }
    let (all, mut count, mut groups) = (letters.len(), 0, BTreeSet::new());
    for (at, (id, letter)) in letters.into_iter().enumerate() {
        let done =
            if change.republish { store.republish(&id, None).await? } else { store.purge(&id).await? };
        // Somebody else did it meanwhile, which is as good.
        if done {
            count += 1;
            said(session, &id, change.done, &letter.group).map_err(|failure| match at + 1 < all {
                true => failure.halfway(format_args!("{} {}", counted(count, "dead letter"), change.done)),
                false => failure,
            })?;
            groups.insert(letter.group.clone());
        }
    }
    if change.republish { tell_idle(session, bus, &groups).await } else { Ok(()) }
}

fn said(session: &mut Session, id: &DeadLetterId, done: &str, group: &str) -> Result {
    let out = &mut session.out;
    if out.json {
        return out.object(Object::new().text("id", id.as_str()).text("group", group).text("done", done));
    }
    out.line(format_args!("{} dead letter {id} of {}", paint(GOOD, done), printable(group)))
}
