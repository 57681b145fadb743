//! Groups: the consumers that the server keeps, and how far each has come.

use crate::broker::Shared;
use crate::publish::Other;
use crate::topology::{PRIORITY_GROUP, consumer_name, filters, owner};
use crate::unreadable::Which;
use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Config, DeliverPolicy, Info};
use bytes::Bytes;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::sync::Arc;

/// Under this a consumer says which group it was of before.
const FORMER: &str = "eventbus-former-group";

/// The cursors of groups.
pub(crate) struct NatsGroups(pub(crate) Arc<Shared>);

macro_rules! answers {
    ($shared:expr, $($owned:ident)* => $answer:expr) => {{
        $(let $owned = $owned.to_owned();)*
        let shared = Arc::clone(&$shared.0);
        BrokerFuture::new(async move {
            let answer = $answer;
            answer(&shared $(, $owned)*).await
        })
    }};
}

impl Groups for NatsGroups {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move { shared.list_groups().await })
    }

    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, group => async |shared: &Shared, group: String| shared.seek(&group, None, offset).await)
    }

    fn seek_on(
        &self,
        group: &str,
        pattern: &str,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, group pattern => async |shared: &Shared, group: String, pattern: String| {
            shared.seek(&group, Some(&pattern), offset).await
        })
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, from to => async |shared: &Shared, from: String, to: String| {
            let renamed = shared.rename(&from, None, &to).await?;
            // Only these are left where an earlier try was cut.
            let moved = shared.rename_dead_letters(&from, &to).await?;
            Ok(renamed || moved > 0)
        })
    }

    fn rename_on(&self, from: &str, pattern: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, from pattern to => async |shared: &Shared, from: String, pattern: String, to: String| {
            shared.rename(&from, Some(&pattern), &to).await
        })
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, group => async |shared: &Shared, group: String| shared.remove(&group, None).await)
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        answers!(self, group pattern => async |shared: &Shared, group: String, pattern: String| {
            shared.remove(&group, Some(&pattern)).await
        })
    }
}

/// Whether some process asks for the events of a consumer.
fn is_active(info: &Info) -> bool {
    let pinned = info.priority_groups.iter().any(|group| {
        group.group == PRIORITY_GROUP && group.pinned_client_id.as_deref().is_some_and(|id| !id.is_empty())
    });
    info.num_waiting > 0 || pinned
}

/// When the server last delivered something of a consumer, or was told that something is settled.
fn last_active(info: &Info) -> Option<Timestamp> {
    let signs = [info.delivered.last_active, info.ack_floor.last_active];
    let nanoseconds = signs.into_iter().flatten().map(|sign| sign.unix_timestamp_nanos()).max()?;
    Timestamp::from_nanosecond(nanoseconds).ok()
}

impl Shared {
    async fn list_groups(&self) -> Result<Vec<GroupState>, BrokerError> {
        let settings = &self.link.settings;
        let consumers = self.link.consumers().await?;
        let bucket = settings.parked();
        let parked = self.counts(&format!("KV_{bucket}"), &format!("$KV.{bucket}.>")).await?;
        // That a handler was called with an event is noted below that.
        let parked: Vec<_> =
            parked.into_iter().filter(|(subject, _)| subject.split('.').count() == 4).collect();
        let parked = by_token(&parked, 2);
        let dead = self.counts(&settings.dead(), &settings.dead_subjects()).await?;
        let dead = by_token(&dead, settings.prefix.split('.').count());
        let mut groups = Vec::new();
        for info in &consumers {
            let Some((group, pattern)) = owner(&info.config) else { continue };
            let mut state = GroupState::new(group, pattern);
            let floor = info.ack_floor.stream_sequence;
            state.cursor = (floor > 0).then(|| Offset::new(floor.into()));
            state.backlog = info.num_pending + info.num_ack_pending as u64;
            state.parked = parked.get(info.name.as_str()).copied().unwrap_or_default();
            state.dead_letters = dead.get(settings.dead_token(group).as_str()).copied().unwrap_or_default();
            (state.active, state.last_active) = (is_active(info), last_active(info));
            if state.backlog > 0 {
                state.oldest = self.oldest(&filters(&info.config), floor + 1).await;
            }
            groups.push(state);
        }
        groups.sort_by(|left, right| (&left.group, &left.pattern).cmp(&(&right.group, &right.pattern)));
        Ok(groups)
    }

    async fn counts(&self, stream: &str, subjects: &str) -> Result<Vec<(String, u64)>, BrokerError> {
        let counted = self.link.counts(stream, subjects).await;
        counted.map_err(|refusal| self.link.explain(format_args!("look at the stream `{stream}`"), refusal))
    }

    /// When the first event from a place on was stored.
    async fn oldest(&self, subjects: &[String], from: u64) -> Option<Timestamp> {
        let which = Which { seq: from, next_by_subj: Some(subjects.first()?) };
        let message = self.link.stored(&self.link.settings.stream, which).await.ok()??;
        Some(message.time)
    }

    /// Ends what was cut when a consumer was being put in the place of another one: what is gone is made, and where one is
    /// there, its place is of no use any more.
    async fn end_moves(&self) -> Result<(), BrokerError> {
        let bucket = self.link.settings.parked();
        let places = self.counts(&format!("KV_{bucket}"), &self.link.settings.moved_subject(">")).await?;
        for (subject, _) in places {
            let Some(name) = subject.rsplit('.').next() else { continue };
            let Some(config) = self.link.place_of(name).await? else { continue };
            match self.link.consumer_info(name).await {
                Ok(_) => {}
                Err(refusal) if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) => {
                    self.link.remove_notes_of_former(name).await?;
                    self.make(name, config).await?;
                }
                Err(refusal) => {
                    return Err(self.link.explain(format_args!("look at the consumer `{name}`"), refusal));
                }
            }
            self.link.forget_place(name).await?;
        }
        Ok(())
    }

    /// The consumers of a group, on one pattern or on all, none of which somebody handles.
    async fn idle(&self, group: &str, pattern: Option<&str>) -> Result<Vec<Info>, BrokerError> {
        let mut found = Vec::new();
        for info in self.link.consumers().await? {
            let Some((other, on)) = owner(&info.config) else { continue };
            if other != group || pattern.is_some_and(|pattern| pattern != on) {
                continue;
            }
            if is_active(&info) {
                return Err(BrokerError::new(format!(
                    "some process handles the group `{group}` on \"{on}\"; stop it first, and where it was killed, wait {:?} \
                     (`ack_wait`)",
                    info.config.ack_wait
                )));
            }
            found.push(info);
        }
        Ok(found)
    }

    async fn seek(
        &self,
        group: &str,
        pattern: Option<&str>,
        offset: Option<Offset>,
    ) -> Result<bool, BrokerError> {
        self.end_moves().await?;
        let found = self.idle(group, pattern).await?;
        let after = offset.map_or(0, |offset| u64::try_from(offset.get()).unwrap_or(u64::MAX - 1));
        for info in &found {
            self.put_in_place(&info.name, after, info.config.clone(), Vec::new()).await?;
        }
        Ok(!found.is_empty())
    }

    /// Makes a consumer that goes on behind a place, with what was noted of the attempts at events, in the place of one of
    /// its name. Where it is cut, the next one who opens the group, or moves any, ends it; the notes come along only where it
    /// is done again.
    async fn put_in_place(
        &self,
        name: &str,
        after: u64,
        mut config: Config,
        notes: Vec<Other>,
    ) -> Result<(), BrokerError> {
        config.name = Some(name.to_owned());
        config.durable_name = Some(name.to_owned());
        config.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: after.saturating_add(1) };
        let place = serde_json::to_vec(&config)
            .map_err(|error| BrokerError::new("cannot write it").with_cause(error))?;
        let place = note(self.link.settings.moved_subject(name), place.into());
        self.outlet.store("the place of the group", place).await?;
        self.delete_consumer(name).await?;
        self.link.remove_notes(name).await?;
        for note in notes {
            self.outlet.store("the time of the next attempt", note).await?;
        }
        self.make(name, config).await?;
        self.link.forget_place(name).await
    }

    async fn make(&self, name: &str, config: Config) -> Result<(), BrokerError> {
        let made = self.link.set_consumer(config, "create").await;
        made.map(drop).map_err(|refusal| {
            let what = format!(
                "make the consumer `{name}` again, which was removed to be moved; do the same once more, or open the group"
            );
            self.link.explain(what, refusal)
        })
    }

    /// What was noted of the attempts at events of a consumer, for another one.
    async fn notes(&self, from: &str, to: &str) -> Result<Vec<Other>, BrokerError> {
        let (settings, bucket) = (&self.link.settings, self.link.settings.parked());
        let mut notes = Vec::new();
        for (subject, _) in self.counts(&format!("KV_{bucket}"), &settings.notes_subject(from)).await? {
            let payload = self.link.noted(&subject).await.map_err(|refusal| {
                self.link.explain(format_args!("read `{subject}` in the bucket `{bucket}`"), refusal)
            })?;
            let rest = subject.strip_prefix(settings.notes_subject(from).trim_end_matches('>'));
            if let (Some(payload), Some(rest)) = (payload, rest) {
                notes.push(note(settings.notes_subject(to).replace('>', rest), payload));
            }
        }
        Ok(notes)
    }

    /// Gives the consumers of a group to another one. Each is made before the former is removed, so that where this is cut it
    /// can be done once more.
    async fn rename(&self, from: &str, pattern: Option<&str>, to: &str) -> Result<bool, BrokerError> {
        if !eventbus_grammar::is_group(to) {
            return Err(BrokerError::new(format!(
                "`{to}` cannot be the name of a group; take 1 to 200 letters, digits, `_`, `-` and dots"
            )));
        }
        self.end_moves().await?;
        let found = self.idle(from, pattern).await?;
        if found.is_empty() {
            return Ok(false);
        }
        let replaced = self.idle(to, pattern).await?;
        if from == to {
            return Ok(true);
        }
        // What the other group had on patterns that this one has not goes first: as long as this one has any, the same can be
        // done again.
        for info in replaced.iter().filter(|_| pattern.is_none()) {
            let is_new = found
                .iter()
                .any(|other| owner(&other.config).is_some_and(|(_, on)| consumer_name(to, on) == info.name));
            // Or it is new since an earlier try, which was cut.
            let is_new = is_new || info.config.metadata.get(FORMER).is_some_and(|former| former == from);
            if !is_new {
                self.delete_consumer(&info.name).await?;
                self.link.remove_notes(&info.name).await?;
            }
        }
        for info in &found {
            let Some((_, on)) = owner(&info.config) else { continue };
            let name = consumer_name(to, on);
            let mut config = self.config_of(
                to,
                &Pattern::new(on).map_err(|error| BrokerError::new(error.to_string()))?,
                info,
            );
            // What is delivered again to the former name only, and waits, comes along.
            let mut subjects = filters(&info.config);
            if subjects.len() > 1 {
                subjects.push(self.link.settings.again(&name, ">"));
                config.filter_subject.clear();
                config.filter_subjects = subjects;
            }
            config.metadata.insert(FORMER.to_owned(), from.to_owned());
            let notes = self.notes(&info.name, &name).await?;
            self.put_in_place(&name, info.ack_floor.stream_sequence, config, notes).await?;
            self.delete_consumer(&info.name).await?;
            self.link.remove_notes(&info.name).await?;
        }
        Ok(true)
    }

    fn config_of(&self, group: &str, pattern: &Pattern, info: &Info) -> Config {
        let wanted = crate::topology::Wanted {
            group,
            pattern,
            from: DeliverPolicy::All,
            again: false,
            competing: info.config.priority_groups.is_empty(),
        };
        self.link.consumer(&consumer_name(group, pattern.as_str()), &wanted)
    }

    async fn remove(&self, group: &str, pattern: Option<&str>) -> Result<bool, BrokerError> {
        self.end_moves().await?;
        let found = self.idle(group, pattern).await?;
        for info in &found {
            self.delete_consumer(&info.name).await?;
            // Where this is cut, they are removed before there is another consumer of this name.
            self.link.remove_notes(&info.name).await?;
        }
        Ok(!found.is_empty())
    }

    async fn delete_consumer(&self, name: &str) -> Result<(), BrokerError> {
        let subject = format!("CONSUMER.DELETE.{}.{name}", self.link.settings.stream);
        match self.link.api::<IgnoredAny>(subject, &crate::connection::Nothing {}).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) => Ok(()),
            Err(refusal) => Err(self.link.explain(format_args!("remove the consumer `{name}`"), refusal)),
        }
    }
}

/// A message that puts something in the bucket.
fn note(subject: String, payload: Bytes) -> Other {
    Other { subject, headers: HeaderMap::new(), payload }
}

/// Counts by one token of the subjects.
fn by_token(counts: &[(String, u64)], at: usize) -> HashMap<&str, u64> {
    let mut sums = HashMap::new();
    for (subject, count) in counts {
        if let Some(token) = subject.split('.').nth(at) {
            *sums.entry(token).or_default() += count;
        }
    }
    sums
}
