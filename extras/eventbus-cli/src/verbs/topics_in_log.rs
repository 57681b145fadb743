//! `topics` of the standalone binary: what is in the log, since no program says what it publishes.

use crate::failure::Result;
use crate::json::Object;
use crate::output::{DIM, TOPIC};
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::text::count;
use crate::when;
use eventbus_core::broker::AuditQuery;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// How many events are read at once.
const PAGE: usize = 1_000;

const COLUMNS: &[Column] = &[Column::name("TOPIC"), Column::number("EVENTS"), Column::whole("LATEST")];

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TopicsInLog {
    /// Only events from this time on: RFC 3339, a day, or how long ago (`2h`)
    #[arg(long, value_name = "TIME", value_parser = when::time)]
    since: Option<Timestamp>,
}

impl TopicsInLog {
    pub(crate) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.look().await?;
        let log = bus.audit_log()?;
        let mut topics: BTreeMap<String, (u64, Timestamp)> = BTreeMap::new();
        let mut query = AuditQuery::default();
        (query.since, query.limit) = (self.since, PAGE);
        loop {
            let events = log.query(query.clone()).await?;
            let Some(last) = events.last() else { break };
            query.after = Some(last.offset);
            for event in &events {
                let (topic, time) = (event.envelope.topic().to_string(), event.envelope.time());
                let (count, latest) = topics.entry(topic).or_insert((0, time));
                *count += 1;
                *latest = time.max(*latest);
            }
        }
        let out = &mut session.out;
        if out.json {
            for (topic, (events, latest)) in &topics {
                let object = Object::new().text("topic", topic).number("events", *events);
                out.object(object.text("latest", latest.to_string()))?;
            }
        } else {
            let mut table = Table::new(COLUMNS);
            for (topic, (events, latest)) in &topics {
                table.push(vec![styled(TOPIC, topic), cell(count(*events)), styled(DIM, out.time(*latest))]);
            }
            out.table(&table, "the log has no events")?;
        }
        Ok(bus.shutdown().await?)
    }
}
