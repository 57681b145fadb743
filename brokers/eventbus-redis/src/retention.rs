//! Retention: removing events that are no longer kept.
//!
//! Redis 8.2 can trim a stream behind what is acknowledged by itself (`XTRIM … ACKED`). It knows nothing of a group that
//! listens on a pattern and has not met the topic yet, though, and Redis 7 and Valkey lack it; so the place is computed
//! here, in the step that trims.

use crate::broker::Store;
use crate::entry;
use crate::history::Pages;
use crate::keeper::millis;
use crate::place::Place;
use crate::script;
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Pattern, Topic};
use redis::Value;
use std::sync::Weak;

/// Where one step has removed so many, there may be more to remove.
const MANY: i64 = 1_000;

/// Applies the retention now and then, as long as there is the broker.
pub(crate) async fn keep(store: Weak<Store>) {
    loop {
        let interval = match store.upgrade() {
            Some(store) if !store.link.is_closed() => store.settings.retention_interval,
            _ => return,
        };
        tokio::time::sleep(interval).await;
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.trim().await {
            log::warn!(target: "eventbus", error = %printable(&error), "the retention could not be applied");
        }
    }
}

impl Store {
    async fn trim(&self) -> Result<(), BrokerError> {
        let groups = redis::cmd("SMEMBERS").arg(self.keys.groups()).clone();
        let groups: Vec<String> = self.link.ask("cannot list groups", &groups).await?;
        let mut listening = Vec::new();
        for group in groups {
            let patterns = redis::cmd("HGETALL").arg(self.keys.group(&group)).clone();
            let patterns = entry::list(self.link.value("cannot list groups", &patterns).await?);
            let texts: Vec<_> = patterns.into_iter().filter_map(entry::text).collect();
            for pair in texts.chunks(2) {
                if let (Ok(pattern), Some(since)) = (Pattern::new(&pair[0]), pair.get(1)) {
                    listening.push((group.clone(), pattern, since.clone()));
                }
            }
        }
        let mut shorter = Vec::new();
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        let retention = &self.settings.retention;
        for topic in self.topics(&all).await? {
            let mut call = script::TRIM.call(&self.keys);
            call.arg(topic.as_str());
            call.arg(retention.age.map(|age| millis(age).to_string()).unwrap_or_default());
            call.arg(retention.count.map(|count| count.to_string()).unwrap_or_default());
            call.arg(if retention.unhandled { "1" } else { "0" });
            for (group, _, since) in
                listening.iter().filter(|(_, pattern, _)| pattern.matches(topic.as_str()))
            {
                call.arg(group).arg(since);
            }
            let mut removed = 0;
            while let Value::Int(more @ 1..) = self.link.value("cannot remove old events", &call).await? {
                removed += more;
                if more < MANY {
                    break;
                }
            }
            if removed > 0 {
                log::debug!(target: "eventbus", topic = %printable(&topic), removed, "events were removed");
                shorter.push(topic);
            }
        }
        self.forget_mended(&shorter).await
    }

    /// Removes what events were mended with that are gone from these topics.
    async fn forget_mended(&self, topics: &[Topic]) -> Result<(), BrokerError> {
        let what = "cannot remove mended payloads";
        if topics.is_empty() {
            return Ok(());
        }
        let groups = redis::cmd("SMEMBERS").arg(self.keys.groups()).clone();
        let groups: Vec<String> = self.link.ask(what, &groups).await?;
        let asked = groups.iter().map(|group| redis::cmd("HKEYS").arg(self.keys.mended(group)).clone());
        let fields = self.ask_each(what, asked.collect()).await?.into_iter();
        let fields =
            fields.map(|fields| entry::list(fields).into_iter().filter_map(entry::text).collect::<Vec<_>>());
        let mended: Vec<_> = groups.iter().zip(fields).filter(|(_, fields)| !fields.is_empty()).collect();
        for topic in if mended.is_empty() { &[] } else { topics } {
            let mut first = Pages::new(self.keys.topic(topic), Place::START, Place::END, false);
            let first = first.next(&self.link, what).await?;
            let first = first.first().map_or(Place::END, |entry| entry.place);
            for (group, fields) in &mended {
                let is_gone = |field: &&String| {
                    let place = field.strip_prefix(topic.as_str()).and_then(|rest| rest.strip_prefix('/'));
                    place.and_then(|place| place.parse::<Place>().ok()).is_some_and(|place| place < first)
                };
                let gone: Vec<_> = fields.iter().filter(is_gone).collect();
                if !gone.is_empty() {
                    let remove = redis::cmd("HDEL").arg(self.keys.mended(group)).arg(gone).clone();
                    self.link.value(what, &remove).await?;
                }
            }
        }
        Ok(())
    }
}
