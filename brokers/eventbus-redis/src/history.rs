//! The history: the entries of several streams in one order, a few at a time, forwards or backwards.

use crate::entry::{self, Entry};
use crate::link::Link;
use crate::place::Place;
use crate::trouble::Trouble;
use eventbus_core::Topic;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many entries of a stream are read at once, at first and at most.
const PAGE: (usize, usize) = (4, 256);
/// No more bytes than that are read at once of one stream, as far as its last entries tell.
const PAGE_BYTES: usize = 1 << 20;

/// A walk through streams, from one place to another.
pub(crate) struct Walk {
    link: Arc<Link>,
    backwards: bool,
    streams: Vec<Stream>,
}

struct Stream {
    key: String,
    topic: Topic,
    /// What is left to be read; none: nothing.
    range: Option<(Place, Place)>,
    read: VecDeque<Entry>,
    page: usize,
}

impl Walk {
    /// A walk from `from` to `to`, these included.
    pub(crate) fn new(
        link: &Arc<Link>,
        streams: impl IntoIterator<Item = (String, Topic)>,
        from: Place,
        to: Place,
        backwards: bool,
    ) -> Self {
        let range = (from <= to).then_some((from, to));
        let stream = |(key, topic)| Stream { key, topic, range, read: VecDeque::new(), page: PAGE.0 };
        Self { link: Arc::clone(link), backwards, streams: streams.into_iter().map(stream).collect() }
    }

    /// The next entry, and its topic; none, at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(Topic, Entry)>, Trouble> {
        for stream in &mut self.streams {
            stream.fill(&self.link, self.backwards).await?;
        }
        let heads = self.streams.iter().enumerate();
        let heads = heads.filter_map(|(number, stream)| Some((stream.read.front()?.place, number)));
        let next = if self.backwards { heads.max() } else { heads.min() };
        let Some((_, number)) = next else { return Ok(None) };
        let stream = &mut self.streams[number];
        Ok(stream.read.pop_front().map(|entry| (stream.topic.clone(), entry)))
    }
}

impl Stream {
    async fn fill(&mut self, link: &Link, backwards: bool) -> Result<(), Trouble> {
        let Some((from, to)) = self.range.filter(|_| self.read.is_empty()) else { return Ok(()) };
        let mut command = redis::cmd(if backwards { "XREVRANGE" } else { "XRANGE" });
        let (first, second) = if backwards { (to, from) } else { (from, to) };
        command.arg(&self.key).arg(first.to_string()).arg(second.to_string()).arg("COUNT").arg(self.page);
        self.read = entry::entries(link.value("cannot read the history", &command).await?).into();
        let full = self.read.len() == self.page;
        self.range = match self.read.back().map(|last| last.place) {
            Some(last) if full && backwards => Some((from, last.before())).filter(|(from, _)| last > *from),
            Some(last) if full => Some((last.next(), to)).filter(|(from, to)| from <= to),
            _ => None,
        };
        let bytes: usize =
            self.read.iter().flat_map(|entry| &entry.fields).map(|(_, value)| value.len()).sum();
        let size = bytes / self.read.len().max(1);
        self.page = (self.page * 4).min(PAGE.1).min((PAGE_BYTES / size.max(1)).max(1));
        Ok(())
    }
}
