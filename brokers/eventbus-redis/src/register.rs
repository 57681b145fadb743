//! Registering: making a group known on a pattern, and taking it over.

use crate::claim::Claim;
use crate::entry;
use crate::keeper::millis;
use crate::place::Place;
use crate::script;
use crate::trouble::Trouble;
use eventbus_core::broker::{Start, Topology};
use eventbus_core::{Pattern, Topic};
use redis::{Cmd, Value};
use std::collections::BTreeMap;

/// The call that makes a group known on its pattern, and begins it on these topics.
///
/// `known`: only where the group is known there.
pub(crate) fn register(
    claim: &Claim,
    start: Start,
    known: bool,
    topics: &[Topic],
    overlapping: &[String],
    resume: &BTreeMap<String, Place>,
) -> Cmd {
    let mut call = script::REGISTER.call(&claim.store.keys);
    call.arg(&claim.group).arg(claim.pattern.as_str());
    call.arg(if start == Start::Latest { "$" } else { "0-0" });
    call.arg(match claim.store.settings.topology {
        Topology::Check => "check",
        _ if known => "known",
        _ => "create",
    });
    call.arg(if claim.pattern.is_exact() { "1" } else { "0" }).arg(topics.len());
    topics.iter().for_each(|topic| _ = call.arg(topic.as_str()));
    call.arg(overlapping.len());
    for pattern in overlapping {
        call.arg(pattern).arg(if covers(claim.pattern.as_str(), pattern) { "1" } else { "0" });
    }
    for (topic, place) in resume {
        call.arg(topic).arg(place.to_string());
    }
    call
}

/// Whether each topic that `inner` covers is covered by `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(segment)) if segment != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// What the server has answered to [`register`].
pub(crate) struct Registered {
    /// The group is known, or was made so.
    pub(crate) known: bool,
    /// How many events a new group skips.
    pub(crate) skips: usize,
    /// Of each topic, the last entry that was delivered, and what is wrong with it.
    pub(crate) streams: Vec<(Topic, Place, String)>,
}

impl Registered {
    pub(crate) fn read(answer: Value) -> Self {
        let mut parts = entry::list(answer).into_iter();
        let known = matches!(parts.next(), Some(Value::Int(_)));
        let skips = match parts.next() {
            Some(Value::Int(skips)) => usize::try_from(skips).unwrap_or(0),
            _ => 0,
        };
        let mut streams = Vec::new();
        while let (Some(topic), Some(last), Some(problem)) = (parts.next(), parts.next(), parts.next()) {
            if let Some(Ok(topic)) = entry::text(topic).map(Topic::new) {
                let last = entry::place_of(&last).unwrap_or_default();
                streams.push((topic, last, entry::text(problem).unwrap_or_default()));
            }
        }
        Self { known, skips, streams }
    }
}

/// Whether a claim has its group.
pub(crate) enum Acquired {
    Ours,
    /// Another one has it, under this token.
    Others(String),
}

impl Claim {
    /// Takes the group over, if nobody else has it.
    pub(crate) async fn acquire(&self) -> Result<Acquired, Trouble> {
        let lease = self.store.settings.lease;
        let link = &self.store.link;
        if self.competing {
            let until = self.store.clock_after(lease);
            self.beat().await?;
            self.begin(String::new(), until);
            return Ok(Acquired::Ours);
        }
        loop {
            let patterns = redis::cmd("HKEYS").arg(self.store.keys.group(&self.group)).clone();
            let patterns = entry::list(link.value("cannot take a group over", &patterns).await?);
            let patterns =
                patterns.into_iter().filter_map(entry::text).filter(|known| known != self.pattern.as_str());
            let overlaps =
                |known: &String| Pattern::new(known).is_ok_and(|known| known.overlaps(&self.pattern));
            let (overlapping, others): (Vec<_>, Vec<_>) = patterns.partition(overlaps);
            let token = self.store.token();
            let until = self.store.clock_after(lease);
            let mut call = script::ACQUIRE.call(&self.store.keys);
            call.arg(&self.group)
                .arg(self.pattern.as_str())
                .arg(&token)
                .arg(millis(lease))
                .arg(overlapping.len());
            overlapping.iter().chain(&others).for_each(|pattern| _ = call.arg(pattern));
            let mut answer = entry::list(link.value("cannot take a group over", &call).await?).into_iter();
            match answer.next().and_then(entry::text).as_deref() {
                Some("HELD") => {
                    self.begin(token, until);
                    return Ok(Acquired::Ours);
                }
                // Another program has made a pattern known meanwhile.
                Some("CHANGED") => {}
                _ => {
                    let other = answer.next().and_then(entry::text).unwrap_or_default();
                    return Ok(Acquired::Others(other));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_pattern_covers_another_where_it_has_all_of_its_topics() {
        for (outer, inner) in
            [("a.b", "a.b"), ("a.*", "a.b"), (">", "a.*.c"), ("a.>", "a.b.>"), ("*.b", "*.b"), (">", ">")]
        {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in
            [("a.b", "a.*"), ("a.*", "a.>"), ("a.*", "a.b.c"), ("a.>", "a"), ("a.b", "a.b.c"), ("a.*", "*.b")]
        {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }
}
