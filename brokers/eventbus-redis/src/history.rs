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
    topic: Topic,
    read: VecDeque<Entry>,
    pages: Pages,
}

/// The entries of one stream, from one place to another, some at a time.
pub(crate) struct Pages {
    key: String,
    backwards: bool,
    /// What is left to be read; none: nothing.
    range: Option<(Place, Place)>,
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
        let stream = |(key, topic)| {
            let pages = Pages::new(key, from, to, backwards);
            Stream { topic, read: VecDeque::new(), pages }
        };
        Self { link: Arc::clone(link), backwards, streams: streams.into_iter().map(stream).collect() }
    }

    /// The next entry, and its topic; none, at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(Topic, Entry)>, Trouble> {
        for stream in &mut self.streams {
            if stream.read.is_empty() {
                stream.read = stream.pages.next(&self.link, "cannot read the history").await?.into();
            }
        }
        let heads = self.streams.iter().enumerate();
        let heads = heads.filter_map(|(number, stream)| Some((stream.read.front()?.place, number)));
        let next = if self.backwards { heads.max() } else { heads.min() };
        let Some((_, number)) = next else { return Ok(None) };
        let stream = &mut self.streams[number];
        Ok(stream.read.pop_front().map(|entry| (stream.topic.clone(), entry)))
    }
}

impl Pages {
    /// What is between `from` and `to`, these included.
    pub(crate) fn new(key: String, from: Place, to: Place, backwards: bool) -> Self {
        let range = (from <= to).then_some((from, to));
        Self { key, backwards, range, page: PAGE.0 }
    }

    /// The next entries; none, at the end.
    pub(crate) async fn next(&mut self, link: &Link, what: &str) -> Result<Vec<Entry>, Trouble> {
        let Some((from, to)) = self.range else { return Ok(Vec::new()) };
        let mut command = redis::cmd(if self.backwards { "XREVRANGE" } else { "XRANGE" });
        let (first, second) = if self.backwards { (to, from) } else { (from, to) };
        command.arg(&self.key).arg(first.to_string()).arg(second.to_string()).arg("COUNT").arg(self.page);
        let read = entry::entries(link.value(what, &command).await?);
        let full = read.len() == self.page;
        self.range = match read.last().map(|last| last.place) {
            Some(last) if full && self.backwards => {
                Some((from, last.before())).filter(|(from, _)| last > *from)
            }
            Some(last) if full => Some((last.next(), to)).filter(|(from, to)| from <= to),
            _ => None,
        };
        let bytes: usize = read.iter().flat_map(|entry| &entry.fields).map(|(_, value)| value.len()).sum();
        let size = bytes / read.len().max(1);
        self.page = (self.page * 4).min(PAGE.1).min((PAGE_BYTES / size.max(1)).max(1));
        Ok(read)
    }
}
