//! Logs that an earlier eventbus wrote: whoever opens one brings it to this version, wholly or not at all, and goes on
//! where the groups had come to.

mod support;

use eventbus_sqlite::SqliteBroker;
use rusqlite::Connection;
use support::{Log, pings, publish_pings, settled};

/// A log of version 2 as its eventbus left it: of the first four events, `model` has handled all but the third, which has
/// failed once.
fn version_2(log: &Log) {
    let connection = Connection::open(log.path()).unwrap();
    connection.pragma_update(None, "auto_vacuum", "incremental").unwrap();
    connection.execute_batch(include_str!("../src/schema.sql")).unwrap();
    connection
        .execute_batch(
            "pragma application_id = 0x45764273; pragma user_version = 2;
             insert into subscription (id, \"group\", pattern, cursor, reached) values (1, 'model', 'ping.sent', 2, 4);
             insert into delivery (subscription, offset, attempt) values (1, 3, 2);",
        )
        .unwrap();
}

fn ask(log: &Log, sql: &str) -> Vec<String> {
    let connection = Connection::open(log.path()).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// What says which version it is and how far its group has come.
fn state(log: &Log) -> Vec<String> {
    [
        ask(log, "select user_version || '' from pragma_user_version"),
        ask(log, "select cursor || ' ' || reached from subscription where intact"),
        ask(log, "select offset || ' ' || attempt from delivery where intact"),
    ]
    .concat()
}

#[tokio::test]
async fn a_log_of_version_2_goes_on_where_its_groups_had_come_to() {
    let log = Log::new();
    version_2(&log);
    let bus = log.bus().await;
    assert_eq!(state(&log), ["3", "2 4", "3 2"]);
    // As if they had been there before.
    publish_pings(&bus, 1..6).await;
    let seen = pings(&bus, "model").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [3, 5]);
    bus.shutdown().await.unwrap();
    assert_eq!(log.broker().await.verify().await.unwrap(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_log_that_cannot_be_brought_to_this_version_stays_as_it_was() {
    let log = Log::new();
    version_2(&log);
    // The last step fails: a table of the new version is there already.
    Connection::open(log.path()).unwrap().execute_batch("create table mended (a)").unwrap();
    SqliteBroker::open(log.path()).await.map(drop).unwrap_err();
    assert_eq!(state(&log), ["2", "2 4", "3 2"]);
    Connection::open(log.path()).unwrap().execute_batch("drop table mended").unwrap();
    drop(log.broker().await);
    assert_eq!(state(&log), ["3", "2 4", "3 2"]);
}

#[tokio::test]
async fn what_is_damaged_does_not_become_whole_in_a_new_version() {
    let log = Log::new();
    version_2(&log);
    let mut bytes = log.bytes();
    let group = b"modelping.sent";
    let at = bytes.windows(group.len()).position(|window| window == group).expect("the row is there");
    bytes[at] = b'n';
    std::fs::write(log.path(), bytes).unwrap();
    assert_eq!(ask(&log, "select \"group\" from subscription where not intact"), ["nodel"]);
    SqliteBroker::open(log.path()).await.map(drop).unwrap_err();
    assert_eq!(ask(&log, "select \"group\" from subscription where not intact"), ["nodel"]);
}
