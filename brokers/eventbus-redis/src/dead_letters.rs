//! Dead letters: a stream for each group, `…:dead:<group>`, which any tool for Redis can read.
//!
//! A dead letter is named after its place in the stream and its group, as in `1732690000123-0@billing.charge`. One that is
//! published again goes to a stream of its group and its topic, which only this group reads.

use crate::broker::Store;
use crate::history::Pages;
use crate::place::Place;
use crate::script;
use crate::wire;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters,
};
use eventbus_core::counted::{count, counted};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Pattern};
use redis::Value;
use std::sync::Arc;

fn name(place: Place, group: &str) -> DeadLetterId {
    DeadLetterId::new(format!("{place}@{group}"))
}

/// The place and the group in a name; none, where it is not one of ours.
fn parse(id: &DeadLetterId) -> Option<(Place, String)> {
    let (place, group) = id.as_str().split_once('@')?;
    Some((place.parse().ok()?, group.to_owned()))
}

impl Store {
    async fn find(&self, query: DeadLetterQuery) -> Result<DeadLetterList, BrokerError> {
        let named = query.id.as_ref().map(parse);
        let groups = match (&named, &query.group) {
            (Some(None), _) => return Ok(Vec::new()),
            (Some(Some((_, group))), _) | (None, Some(group)) => vec![group.clone()],
            (None, None) => {
                let command = redis::cmd("SMEMBERS").arg(self.keys.dead_groups()).clone();
                self.link.ask("cannot list dead letters", &command).await?
            }
        };
        let after = query.after.as_ref().and_then(parse).map(|(place, _)| place);
        let (from, to) = match named.flatten() {
            Some((place, _)) => (place, place),
            None => (after.unwrap_or(Place::START), Place::END),
        };
        let mut found = Vec::new();
        for group in groups {
            self.find_of_group(&group, from, to, &query, &mut found).await?;
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.truncate(query.limit);
        Ok(found)
    }

    async fn find_of_group(
        &self,
        group: &str,
        from: Place,
        to: Place,
        query: &DeadLetterQuery,
        found: &mut DeadLetterList,
    ) -> Result<(), BrokerError> {
        let mut missing = query.limit;
        let mut pages = Pages::new(self.keys.dead(group), from, to, false);
        while missing > 0 {
            let page = pages.next(&self.link, "cannot read dead letters").await?;
            if page.is_empty() {
                break;
            }
            for entry in page {
                let id = name(entry.place, group);
                let Some(letter) = wire::read_dead_letter(group, entry.place, entry.fields) else { continue };
                if missing > 0 && query.matches(&id, &letter) {
                    missing -= 1;
                    found.push((id, Arc::new(letter)));
                }
            }
        }
        Ok(())
    }

    async fn republish(&self, id: DeadLetterId, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        let Some((place, group)) = parse(&id) else { return Ok(false) };
        let size = payload.as_ref().map_or(0, Bytes::len);
        if size > self.max_payload {
            return Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: its payload has {}, and {} are allowed (`max_payload`)",
                counted(size, "byte"),
                count(self.max_payload)
            )));
        }
        let mut query = DeadLetterQuery::default();
        query.id = Some(id.clone());
        let Some((_, letter)) = self.find(query).await?.pop() else { return Ok(false) };
        self.check_listening(&id, &letter).await?;
        let mut call = script::REPUBLISH.call_once(self);
        call.arg(&group).arg(place.to_string());
        call.arg(if payload.is_some() { "1" } else { "0" }).arg(payload.as_deref().unwrap_or_default());
        match self.link.value("cannot publish the dead letter again", &call).await? {
            Value::Int(done) => Ok(done == 1),
            _ => Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: the group `{group}` has the event at hand already; try again once it is \
                 handled"
            ))),
        }
    }

    /// Whether the group listens on the topic of a dead letter.
    async fn check_listening(&self, id: &DeadLetterId, letter: &DeadLetter) -> Result<(), BrokerError> {
        let (group, topic) = (&letter.group, letter.envelope.topic());
        let patterns = self.patterns(group).await?;
        let covers =
            |pattern: &str| Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(topic.as_str()));
        let handled = patterns.iter().any(|(_, active)| *active);
        if patterns.iter().any(|(pattern, active)| covers(pattern) && *active) {
            return Ok(());
        }
        if handled || !patterns.iter().any(|(pattern, _)| covers(pattern)) {
            return Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: the group `{group}` does not listen on \"{topic}\" any more; start a \
                 subscription of that group on it first"
            )));
        }
        log::warn!(
            target: "eventbus", group = %printable(group), topic = %printable(topic), id = %printable(id),
            "a dead letter was published again, and no process handles the group now: it waits for one"
        );
        Ok(())
    }

    async fn purge(&self, id: &DeadLetterId) -> Result<bool, BrokerError> {
        let Some((place, group)) = parse(id) else { return Ok(false) };
        let mut call = script::PURGE.call_once(self);
        call.arg(group).arg(place.to_string());
        let removed = self.link.value("cannot remove the dead letter", &call).await?;
        Ok(removed == Value::Int(1))
    }
}

/// The dead letters of a broker.
pub(crate) struct RedisDeadLetters(pub(crate) Arc<Store>);

impl DeadLetters for RedisDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.find(query).await })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (store, id) = (Arc::clone(&self.0), id.clone());
        BrokerFuture::new(async move { store.republish(id, payload).await })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let (store, id) = (Arc::clone(&self.0), id.clone());
        BrokerFuture::new(async move { store.purge(&id).await })
    }
}
