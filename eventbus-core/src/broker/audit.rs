//! The audit log: what was published, to be asked afterwards.

use super::{BrokerFuture, Offset};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::id::EventId;
use crate::topic::Pattern;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A broker that can be asked what was published on it.
///
/// All methods may be called from any thread, at once.
///
/// # Cancel safety
/// A future that is dropped changes nothing.
pub trait AuditLog: Send + Sync + 'static {
    /// The events that `query` describes, as they are at one moment.
    ///
    /// # Errors
    /// Where the log cannot be read.
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>>;

    /// Resolves once there is an event behind `offset`; none stands for the place before the first one. Together
    /// with [`AuditQuery::after`] this follows the log live.
    ///
    /// # Errors
    /// Where the log is closed, or cannot be read.
    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>>;

    /// The place of the latest event.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>>;

    /// The payloads that the event at `offset` was mended with, by the groups that get them in the place of its own since
    /// they published their dead letters of it again. The event itself stays as it was published.
    ///
    /// By default there are none: the broker keeps no such payloads, or does not say which.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    fn mended(&self, offset: Offset) -> BrokerFuture<Result<Vec<(String, Bytes)>, BrokerError>> {
        let _ = offset;
        BrokerFuture::ready(Ok(Vec::new()))
    }
}

/// An event in the log, and its place.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The place.
    pub offset: Offset,
    /// The event.
    pub envelope: Arc<Envelope>,
}

/// Which events are asked for: those that meet every condition that is set.
///
/// ```
/// use eventbus_core::Pattern;
/// use eventbus_core::broker::AuditQuery;
///
/// let mut query = AuditQuery::default();
/// query.pattern = Some(Pattern::new("order.>")?);
/// query.key = Some("1042".into());
/// query.newest_first = true;
/// query.limit = 20;
/// # Ok::<(), eventbus_core::TopicError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditQuery {
    /// On these topics.
    pub pattern: Option<Pattern>,
    /// With this id.
    pub id: Option<EventId>,
    /// At this place.
    pub offset: Option<Offset>,
    /// With this key.
    pub key: Option<String>,
    /// Of this type.
    pub event_type: Option<String>,
    /// Of this chain of events; the event that began it has this id.
    pub correlation_id: Option<EventId>,
    /// That happened at this time or later.
    pub since: Option<Timestamp>,
    /// That happened before this time.
    pub before: Option<Timestamp>,
    /// Behind this place in the order that is asked for: later ones, or with `newest_first` earlier ones.
    pub after: Option<Offset>,
    /// The latest first. Default: the earliest first.
    pub newest_first: bool,
    /// At most so many; where there are fewer, they are all there are. Default: 1,000.
    pub limit: usize,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self {
            pattern: None,
            id: None,
            offset: None,
            key: None,
            event_type: None,
            correlation_id: None,
            since: None,
            before: None,
            after: None,
            newest_first: false,
            limit: 1_000,
        }
    }
}

impl AuditQuery {
    /// Whether an event meets every condition about the event itself; `offset`, `after` and `limit` are about its place.
    #[must_use]
    pub fn matches(&self, envelope: &Envelope) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.matches(envelope.topic().as_str()))
            && self.id.as_ref().is_none_or(|id| id == envelope.id())
            && self.key.as_deref().is_none_or(|key| Some(key) == envelope.key())
            && self.event_type.as_deref().is_none_or(|event_type| event_type == envelope.event_type())
            && self.correlation_id.as_ref().is_none_or(|id| id == envelope.correlation_id())
            && self.since.is_none_or(|since| envelope.time() >= since)
            && self.before.is_none_or(|before| envelope.time() < before)
    }
}

/// An event with the events that it caused.
#[derive(Clone, Debug)]
pub struct CauseTree {
    /// The event.
    pub event: Recorded,
    /// What handlers published because of it, in the order of the log.
    pub effects: Vec<Self>,
}

impl CauseTree {
    /// How many levels a tree has at most, so that a tree can be walked, copied and dropped by recursion.
    pub const LEVELS: usize = 256;

    /// Orders the events of one chain into trees: usually one. An event whose cause is not among `events`, since
    /// it is no longer kept, begins a tree of its own, and so does one that stands below the last of the
    /// [`LEVELS`](Self::LEVELS); the trees of the latter follow the others.
    #[must_use]
    pub fn of(events: Vec<Recorded>) -> Vec<Self> {
        let known: BTreeSet<_> = events.iter().map(|event| event.envelope.id().clone()).collect();
        let mut by_cause: BTreeMap<Option<EventId>, Vec<Recorded>> = BTreeMap::new();
        for event in events {
            let envelope = &event.envelope;
            // An event that claims to have caused itself is still an event.
            let cause =
                envelope.causation_id().filter(|cause| known.contains(*cause) && *cause != envelope.id());
            by_cause.entry(cause.cloned()).or_default().push(event);
        }
        let mut growth = Growth { by_cause, cut: VecDeque::new() };
        let mut trees = growth.grow(None, 1);
        // Events that claim to have caused each other in a circle hang on no root.
        while let Some(cause) =
            growth.cut.pop_front().or_else(|| growth.by_cause.keys().next().cloned().flatten())
        {
            trees.extend(growth.grow(Some(cause), 1));
        }
        trees
    }
}

/// What is not yet in a tree.
struct Growth {
    by_cause: BTreeMap<Option<EventId>, Vec<Recorded>>,
    /// The causes below the last level.
    cut: VecDeque<EventId>,
}

impl Growth {
    fn grow(&mut self, cause: Option<EventId>, level: usize) -> Vec<CauseTree> {
        if level > CauseTree::LEVELS && self.by_cause.contains_key(&cause) {
            self.cut.extend(cause);
            return Vec::new();
        }
        let events = self.by_cause.remove(&cause).unwrap_or_default();
        events
            .into_iter()
            .map(|event| {
                let effects = self.grow(Some(event.envelope.id().clone()), level + 1);
                CauseTree { event, effects }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;

    fn event(offset: u128, id: &str, cause: Option<&Envelope>) -> Recorded {
        let topic = Topic::from_static("a.happened");
        let envelope = Envelope::from_json(topic, &()).unwrap().with_id(EventId::new(id));
        let envelope = cause.map_or(envelope.clone(), |cause| envelope.caused_by(cause));
        Recorded { offset: Offset::new(offset), envelope: Arc::new(envelope) }
    }

    fn drawn(trees: &[CauseTree]) -> String {
        let draw = |tree: &CauseTree| format!("{}({})", tree.event.envelope.id(), drawn(&tree.effects));
        trees.iter().map(draw).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn effects_hang_on_their_causes_and_nothing_is_left_out() {
        let a = event(1, "a", None);
        let b = event(2, "b", Some(&a.envelope));
        let c = event(3, "c", Some(&b.envelope));
        let d = event(4, "d", Some(&a.envelope));
        let orphan = event(5, "e", Some(&event(0, "gone", None).envelope));
        assert_eq!(drawn(&CauseTree::of(vec![a, b, c, d, orphan])), "a(b(c()) d()) e()");
        let one = event(1, "one", Some(&event(2, "two", None).envelope));
        let two = event(2, "two", Some(&one.envelope));
        assert_eq!(drawn(&CauseTree::of(vec![one, two])), "two(one())");
    }

    #[test]
    fn a_long_chain_goes_on_in_further_trees_and_in_order() {
        let mut events = vec![event(0, "0", None)];
        for number in 1..100_000_usize {
            let cause = Arc::clone(&events[number - 1].envelope);
            events.push(event(number as u128, &number.to_string(), Some(&cause)));
        }
        let trees = CauseTree::of(events);
        let (mut next, mut levels) = (0, 0);
        for tree in &trees {
            let (mut tree, mut level) = (Some(tree), 0);
            while let Some(one) = tree {
                assert_eq!(one.event.offset.get(), next);
                (next, level, tree) = (next + 1, level + 1, one.effects.first());
            }
            levels = levels.max(level);
        }
        assert_eq!((next, levels), (100_000, CauseTree::LEVELS));
        drop(format!("{:?}", trees.clone()));
    }
}
