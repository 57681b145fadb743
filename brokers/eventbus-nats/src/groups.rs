//! Groups: the consumers that the server keeps, and how far each has come.

use crate::broker::Shared;
use crate::topology::{PRIORITY_GROUP, consumer_name, filters, owner};
use crate::unreadable::Which;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info};
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::sync::Arc;

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
            shared.rename_dead_letters(&from, &to).await?;
            Ok(renamed)
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

impl Shared {
    async fn list_groups(&self) -> Result<Vec<GroupState>, BrokerError> {
        let settings = &self.link.settings;
        let consumers = self.link.consumers().await?;
        let bucket = settings.parked();
        let parked = self.counts(&format!("KV_{bucket}"), &format!("$KV.{bucket}.>")).await?;
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
            state.active = is_active(info);
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
        let found = self.idle(group, pattern).await?;
        let after = offset.map_or(0, |offset| u64::try_from(offset.get()).unwrap_or(u64::MAX - 1));
        for info in &found {
            let name = info.name.clone();
            self.put_in_place(info, &name, after, info.config.clone()).await?;
            self.link.remove_notes(&name).await;
        }
        Ok(!found.is_empty())
    }

    /// Makes a consumer that goes on behind a place, in the place of another one.
    async fn put_in_place(
        &self,
        former: &Info,
        name: &str,
        after: u64,
        mut config: async_nats::jetstream::consumer::Config,
    ) -> Result<(), BrokerError> {
        config.name = Some(name.to_owned());
        config.durable_name = Some(name.to_owned());
        config.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: after.saturating_add(1) };
        // A crash in between leaves this for the next opening of the group.
        let place = serde_json::to_vec(&config)
            .map_err(|error| BrokerError::new("cannot write it").with_cause(error))?;
        let note = crate::publish::Other {
            subject: self.link.settings.moved_subject(name),
            headers: async_nats::HeaderMap::new(),
            payload: place.into(),
        };
        self.outlet.store("the place of the group", note).await?;
        self.delete_consumer(name).await?;
        let made = self.link.set_consumer(config, "create").await;
        made.map_err(|refusal| {
            let what = format!(
                "make the consumer `{name}` again, which was removed as it had come to {}; make it by hand",
                former.ack_floor.stream_sequence
            );
            self.link.explain(what, refusal)
        })?;
        self.link.forget_place(name).await;
        Ok(())
    }

    async fn rename(&self, from: &str, pattern: Option<&str>, to: &str) -> Result<bool, BrokerError> {
        if !eventbus_grammar::is_group(to) {
            return Err(BrokerError::new(format!(
                "`{to}` cannot be the name of a group; take 1 to 200 letters, digits, `_`, `-` and dots"
            )));
        }
        let found = self.idle(from, pattern).await?;
        if found.is_empty() {
            return Ok(false);
        }
        let replaced = self.idle(to, pattern).await?;
        if from == to {
            return Ok(true);
        }
        let bucket = self.link.settings.parked();
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
            self.link.remove_notes(&name).await;
            self.put_in_place(info, &name, info.ack_floor.stream_sequence, config).await?;
            for (subject, _) in
                self.counts(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{}.>", info.name)).await?
            {
                let Some(sequence) = subject.rsplit('.').next().and_then(|number| number.parse().ok()) else {
                    continue;
                };
                if let Some(payload) = self.link.note(&info.name, sequence).await {
                    let subject = self.link.settings.note_subject(&name, sequence);
                    let note =
                        crate::publish::Other { subject, headers: async_nats::HeaderMap::new(), payload };
                    self.outlet.store("the time of the next attempt", note).await?;
                }
            }
            self.delete_consumer(&info.name).await?;
            self.link.remove_notes(&info.name).await;
        }
        // What the other group had on patterns that this one has not.
        for info in replaced.iter().filter(|_| pattern.is_none()) {
            let is_new = found
                .iter()
                .any(|other| owner(&other.config).is_some_and(|(_, on)| consumer_name(to, on) == info.name));
            if !is_new {
                self.delete_consumer(&info.name).await?;
            }
        }
        Ok(true)
    }

    fn config_of(
        &self,
        group: &str,
        pattern: &Pattern,
        info: &Info,
    ) -> async_nats::jetstream::consumer::Config {
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
        let found = self.idle(group, pattern).await?;
        for info in &found {
            self.delete_consumer(&info.name).await?;
            self.link.remove_notes(&info.name).await;
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
