//! The verbs on a broker that one program keeps: each test has an address of its own.

use crate::output::{Captured, Output};
use crate::session::Session;
use crate::shop::OrderPlaced;
use crate::verbs::Verb;
use bytes::Bytes;
use clap::{FromArgMatches, Subcommand};
use eventbus::broker::{AuditLog, Replayable, Scheme, SubscribeRequest};
use eventbus::broker::{
    Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, GroupState, Groups, Offset,
};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Envelope, EventId, PublishError, Topic};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The brokers by their addresses.
static BROKERS: Mutex<BTreeMap<String, Kept>> = Mutex::new(BTreeMap::new());

eventbus_core::register_scheme!(Scheme {
    name: "kept",
    open: |address| {
        if address == "kept:away" {
            return BrokerFuture::ready(Err(BrokerError::new("there is no server at `away`; start it")));
        }
        let mut brokers = BROKERS.lock().unwrap();
        let broker = brokers.entry(address.to_owned()).or_insert_with(|| Kept::new(address)).clone();
        BrokerFuture::ready(Ok(Arc::new(broker)))
    },
});

/// The in-process broker, with cursors that do nothing but move.
#[derive(Clone)]
struct Kept {
    memory: MemoryBroker,
    cursors: Arc<Mutex<BTreeMap<String, Option<Offset>>>>,
    /// Its groups are queues.
    queues: bool,
    connection: Connection,
    address: String,
}

impl Kept {
    fn new(address: &str) -> Self {
        let memory = MemoryBroker::builder().history(10_000).build();
        let cursors = Arc::new(Mutex::new([("old".to_owned(), None)].into()));
        let (since, error) = ("2026-01-01T00:00:00Z".parse().unwrap(), "it says so\x07".to_owned());
        let connection = match address {
            "kept:lost" => Connection::Lost { since, error },
            "kept:slowed" => Connection::Slowed { since, error },
            _ => Connection::Up,
        };
        let address = address.to_owned();
        Self { memory, cursors, queues: address == "kept:queues", connection, address }
    }
}

impl Broker for Kept {
    fn name(&self) -> &str {
        "kept"
    }

    fn features(&self) -> Features {
        let mut features = self.memory.features();
        (features.seek, features.rename) = (!self.queues, !self.queues);
        features.backlog = if self.address == "kept:uncounted" { Backlog::Unknown } else { Backlog::Exactly };
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.memory.publish(envelope)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        self.memory.subscribe(request)
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let error = BrokerError::new(format!("there is no queue for the group `{}`", request.group));
        BrokerFuture::ready(if self.address.contains("topology=") { Err(error) } else { Ok(()) })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.memory.dead_letters()
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        self.memory.replayable()
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        self.memory.audit_log()
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::new(self.clone()))
    }

    fn connection(&self) -> Connection {
        self.connection.clone()
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        self.memory.drain(subscriptions)
    }
}

impl Groups for Kept {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let state = |(group, cursor): (&String, &Option<Offset>)| {
            let mut state = GroupState::new(group, "order.placed");
            (state.cursor, state.backlog, state.parked, state.dead_letters) = (*cursor, 1_234, 1, 2);
            match group.as_str() {
                "idle" => state.backlog = state.parked,
                "stuck" => state.active = true,
                _ => {}
            }
            state
        };
        match &*self.address {
            "kept:silent" => BrokerFuture::new(std::future::pending()),
            "kept:refusing" => BrokerFuture::ready(Err(BrokerError::new("you may not list queues"))),
            _ => BrokerFuture::ready(Ok(self.cursors.lock().unwrap().iter().map(state).collect())),
        }
    }

    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        if self.queues {
            return Queues.seek(group, offset);
        }
        let moved = self.cursors.lock().unwrap().get_mut(group).map(|cursor| *cursor = offset);
        BrokerFuture::ready(Ok(moved.is_some()))
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        if self.queues {
            return Queues.rename(from, to);
        }
        let mut cursors = self.cursors.lock().unwrap();
        let cursor = cursors.remove(from);
        let found = cursor.is_some();
        cursors.extend(cursor.map(|cursor| (to.to_owned(), cursor)));
        BrokerFuture::ready(Ok(found))
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(self.cursors.lock().unwrap().remove(group).is_some()))
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let removed = pattern == "order.placed" && self.cursors.lock().unwrap().remove(group).is_some();
        BrokerFuture::ready(Ok(removed))
    }
}

/// The groups of a broker that declines what the contract lets it decline.
struct Queues;

impl Groups for Queues {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        BrokerFuture::ready(Ok(Vec::new()))
    }

    fn remove(&self, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }
}

/// How a verb ended, and what it wrote.
#[derive(Debug)]
struct Ended {
    code: u8,
    out: String,
    raw: String,
    error: String,
}

impl Ended {
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{self:?}");
        self.raw.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    }
}

/// Runs a verb as it is written in a shell.
async fn shop(address: &str, line: &str) -> Ended {
    let command = Verb::augment_subcommands(clap::Command::new("shop").no_binary_name(true))
        .arg(clap::Arg::new("json").long("json").global(true).action(clap::ArgAction::SetTrue));
    let matches = match command.try_get_matches_from(shlex::split(line).unwrap()) {
        Ok(matches) => matches,
        Err(error) => {
            let (out, raw, error) = (String::new(), String::new(), error.to_string());
            return Ended { code: 2, out, raw, error };
        }
    };
    let (out, remarks) = (Captured::default(), Captured::default());
    let output = Output::captured(matches.get_flag("json"), None, out.clone(), remarks.clone());
    let mut session = Session { url: format!("kept:{address}"), out: output, builder: Bus::builder() };
    let result = Verb::from_arg_matches(&matches).unwrap().execute(&mut session).await;
    session.out.end().unwrap();
    let failure = result.as_ref().err();
    Ended {
        code: failure.map_or(0, crate::failure::Failure::exit_code),
        out: console::strip_ansi_codes(&out.text()).into_owned(),
        raw: out.text(),
        error: failure.and_then(crate::failure::Failure::text).map_or_else(|| remarks.text(), str::to_owned),
    }
}

/// Publishes some orders and handles them: of two one is given up.
async fn business(address: &str) {
    let bus = Bus::builder().connect(&format!("kept:{address}")).await.unwrap();
    bus.start().unwrap();
    bus.publish(&OrderPlaced { id: 1, item: "book".into() }).id(EventId::new("first")).await.unwrap();
    bus.publish(&OrderPlaced { id: 2, item: "unicorn".into() }).id(EventId::new("second")).await.unwrap();
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_was_published_is_found_in_the_log() {
    let published = shop(
        "log",
        "publish order.placed '{ \"id\": 7, \"item\": \"pen\" }' --key 7 --header tenant=acme --json",
    )
    .await;
    let id = published.lines()[0]["id"].as_str().unwrap().to_owned();
    shop("log", "publish user.created '\"Ada\"'").await;
    let found = shop("log", "log 'order.>' --key 7 --since 1h --json").await.lines();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0]["id"], &found[0]["tenant"], &found[0]["data"]),
        (&json!(id), &json!("acme"), &json!({ "id": 7, "item": "pen" }))
    );
    let table = shop("log", "log --newest -n 1").await;
    assert!(table.out.contains("user.created") && !table.out.contains("order.placed"), "{table:?}");
    assert!(table.error.contains("there are more: --after 1"), "{table:?}");
    assert!(shop("log", "log --until 1h").await.error.contains("no event"));
    for event in [id.as_str(), "0"] {
        let shown = shop("log", &format!("log show {event}")).await.out;
        assert!(
            shown.contains(&id)
                && shown.contains("tenant: acme")
                && shown.contains("{\n  \"id\": 7,\n  \"item\": \"pen\"\n}"),
            "{shown}"
        );
    }
    assert_eq!(shop("log", "log show nobody").await.code, 3);
    assert_eq!(shop("log", "log --key 7 show 0").await.code, 2);
}

#[tokio::test]
async fn what_is_no_json_is_not_published_unless_it_says_so() {
    let refused = shop("json", "publish a '{id: 1}'").await;
    assert_eq!(refused.code, 1);
    assert!(refused.error.contains("--content-type"), "{refused:?}");
    assert_eq!(shop("json", "publish a '{id: 1}' --content-type text/plain").await.code, 0);
    assert_eq!(shop("json", "log --json").await.lines()[0]["data_base64"], "e2lkOiAxfQ==");
}

#[tokio::test]
async fn a_slip_in_a_topic_is_noticed() {
    for line in ["order.plcaed 1", "order.plcaed --lines '1'"] {
        let refused = shop("slip", &format!("publish {line}")).await;
        assert!(refused.code == 1 && refused.error.contains("did you mean \"order.placed\"?"), "{refused:?}");
        assert!(refused.error.contains("--unchecked publishes it all the same"), "{refused:?}");
    }
    assert!(shop("slip", "log --json").await.lines().is_empty(), "nothing is published");
    let warned = shop("slip", "publish order.plcaed 1 --unchecked").await;
    assert!(warned.code == 0 && warned.error.contains("did you mean \"order.placed\"?"), "{warned:?}");
    assert_eq!(shop("slip", "publish item.reserved '{\"order\":1}'").await.error, "");
    assert_eq!(shop("slip", "publish door.opened 1").await.error, "");
}

#[tokio::test]
async fn a_slip_in_a_pattern_is_noticed() {
    for (line, meant, code) in [
        ("log placed", "order.placed", 3),
        ("log order.plcaed --json", "order.placed", 3),
        ("tail order.plcaed --limit 0", "order.placed", 0),
        ("tail reserved --limit 0", "item.reserved", 0),
    ] {
        let told = shop("slips", line).await;
        assert!(told.error.contains(&format!("did you mean \"{meant}\"?")), "{line}: {told:?}");
        assert_eq!(told.code, code, "what is not published yet may be: {line}: {told:?}");
    }
    for line in ["log order.placed", "log 'order.>'", "log door", "tail 'item.*' --limit 0", "tail --limit 0"]
    {
        assert!(!shop("slips", line).await.error.contains("did you mean"), "{line}");
    }
}

#[tokio::test]
async fn what_the_program_cannot_read_is_not_published_unless_it_is_told_so() {
    let publish = async |line: &str| shop("unread", &format!("publish {line}")).await;
    let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"order.placed","data":{"id":10}}"#;
    for (line, place) in [
        (r#"order.placed '{"id":10}'"#.to_owned(), ""),
        (r#"order.placed '{"id":10}' --content-type text/json"#.to_owned(), ""),
        (format!("order.placed --lines '{}\n\n{}'", r#"{"id":1,"item":"a"}"#, r#"{"id":10}"#), "line 3: "),
        (format!("--cloudevents '{event}'"), "event 1: "),
        (format!("elsewhere --cloudevents '{event}'"), "event 1: "),
    ] {
        let refused = publish(&line).await;
        assert_eq!(refused.code, 1, "{line}: {refused:?}");
        let said = format!("{place}cannot decode `OrderPlaced` v1: missing field `item` at line 1 column 9");
        for words in [said.as_str(), "shop.rs:", "--unchecked"] {
            assert!(refused.error.contains(words), "{words}: {refused:?}");
        }
    }
    let stated = publish(r#"order.placed '{"id":1,"item":"a"}' --content-type text/plain"#).await;
    assert!(stated.code == 1 && stated.error.contains("`text/plain`"), "{stated:?}");
    assert_eq!(shop("unread", "log --json").await.lines().len(), 1, "the line before the wrong one");
    for line in [r#"order.placed '{"id":10}'"#.to_owned(), format!("--cloudevents '{event}'")] {
        let all_the_same = publish(&format!("{line} --unchecked")).await;
        assert_eq!(all_the_same.code, 0, "{all_the_same:?}");
    }
    assert_eq!(shop("unread", "log --json").await.lines().len(), 3);
}

#[tokio::test]
async fn what_is_published_has_the_key_of_its_event_unless_it_is_given() {
    let order = r#"{"id":10,"item":"pen"}"#;
    let event =
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"order.placed","data":{order}}}"#);
    for (line, key) in [
        (format!("order.placed '{order}'"), json!("10")),
        (format!("order.placed --lines '{order}'"), json!("10")),
        (format!("order.placed '{order}' --key mine"), json!("mine")),
        (format!("--cloudevents '{event}'"), json!("10")),
        (format!("door.opened '{order}'"), Value::Null),
    ] {
        let address = format!("keyed {line}");
        assert_eq!(shop(&address, &format!("publish {line}")).await.code, 0, "{line}");
        assert_eq!(shop(&address, "log --json").await.lines()[0]["partitionkey"], key, "{line}");
    }
}

#[tokio::test]
async fn a_version_that_the_program_does_not_know_is_noticed() {
    let warned = shop("version", "publish order.placed '{}' --event-version 3").await;
    assert!(warned.code == 0 && warned.error.contains("in version 1, and not in version 3"), "{warned:?}");
    assert!(warned.error.contains("--event-version 1"), "{warned:?}");
    let events = shop("version", "log --json").await.raw;
    let again = shop("version again", &format!("publish --cloudevents '{events}'")).await;
    assert!(again.code == 0 && again.error.contains("not in version 3"), "{again:?}");
    for known in ["publish item.reserved '{\"order\":1}'", "publish door.opened '{}' --event-version 3"] {
        assert_eq!(shop("version", known).await.error, "", "{known}");
    }
}

#[tokio::test]
async fn a_payload_is_of_the_newest_version_unless_another_is_named() {
    let publish = async |line: &str| shop("newest", &format!("publish parcel.sent {line}")).await;
    let (first, second) = (r#"'{"order":1}'"#, r#"'{"id":2,"carrier":"rail"}'"#);
    for line in [second.to_owned(), format!("--lines {second}"), format!("{first} --event-version 1")] {
        let published = publish(&line).await;
        assert!(published.code == 0 && published.error.is_empty(), "{line}: {published:?}");
    }
    let events = shop("newest", "log --json").await.lines();
    let told: Vec<_> = events.iter().map(|event| (&event["eventversion"], &event["partitionkey"])).collect();
    assert_eq!(told, [(&json!(2), &json!("2")), (&json!(2), &json!("2")), (&json!(1), &json!("1"))]);
    assert_eq!(shop("newest", "publish door.opened '{}'").await.code, 0);
    assert_eq!(shop("newest", "log door.opened --json").await.lines()[0]["eventversion"], 1);
}

#[tokio::test]
async fn the_version_that_a_payload_fits_is_named_where_it_is_another() {
    let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"parcel.sent","eventversion":2,"data":{"order":1}}"#;
    for (line, remedy) in [
        (r#"parcel.sent '{"order":1}'"#.to_owned(), "; it reads as v1: `--event-version 1`, or publish it"),
        (
            r#"parcel.sent '{"id":1,"carrier":"rail"}' --event-version 1"#.to_owned(),
            "; it reads as v2: `--event-version 2`, or publish it",
        ),
        (format!("--cloudevents '{event}'"), "; it reads as v1: set its `eventversion` to 1, or publish it"),
        ("parcel.sent '{}'".to_owned(), "; mend the payload, or publish it"),
    ] {
        let refused = shop("fitting", &format!("publish {line}")).await;
        assert!(refused.code == 1 && refused.error.contains(remedy), "{remedy}: {refused:?}");
    }
    assert!(shop("fitting", "log --json").await.lines().is_empty());
}

#[tokio::test]
async fn what_was_printed_can_be_published_and_is_the_same() {
    business("printed").await;
    shop("printed", "publish scan.stored 'a b' --content-type text/plain --key '' --header X-Note=1").await;
    let printed = shop("printed", "log --json").await;
    let again = shop("printed again", &format!("publish --cloudevents {}", quoted(&printed.raw))).await;
    assert_eq!(again.out, "published 4 events to 3 topics\n");
    assert_eq!(shop("printed again", "log --json").await.raw, printed.raw);
    // The batch format, to another topic than the events name.
    let lines: Vec<_> = printed.raw.lines().collect();
    let batch = quoted(&format!("[{}]", lines.join(", ")));
    let moved = shop("printed elsewhere", &format!("publish moved --cloudevents {batch} --json")).await;
    assert_eq!(moved.lines().len(), 4);
    let found = shop("printed elsewhere", "log moved --json").await.lines();
    assert_eq!(found.iter().filter(|event| event["type"] == "order.placed").count(), 2);
}

#[tokio::test]
async fn events_are_published_up_to_the_first_that_is_none() {
    let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"a"}"#;
    let wrong = shop("wrong", &format!("publish --cloudevents '{event} {event} {{}} {event}'")).await;
    assert!(wrong.code == 1 && wrong.error.contains("event 3: it has no `specversion`"), "{wrong:?}");
    assert!(wrong.error.contains("(2 events published)"), "{wrong:?}");
    assert_eq!(shop("wrong", "publish '{}'").await.code, 2);
    assert_eq!(shop("wrong", "publish a --cloudevents --key b").await.code, 2);
}

fn quoted(text: &str) -> String {
    shlex::try_quote(text).unwrap().into_owned()
}

#[tokio::test]
async fn lines_are_published_in_their_order_up_to_the_first_that_is_wrong() {
    let lines = (0..1_000).map(|number| format!("{number}\n")).collect::<String>();
    let done = shop("lines", &format!("publish a --lines '{lines}'")).await;
    assert_eq!(done.out, "published 1,000 events to a\n");
    let found = shop("lines", "log --limit 2000 --json").await.lines();
    assert_eq!(
        found.iter().map(|event| event["data"].as_u64().unwrap()).collect::<Vec<_>>(),
        (0..1_000).collect::<Vec<_>>()
    );
    let wrong = shop("lines", "publish a --lines '1\n\n2\nx\n3'").await;
    assert!(
        wrong.code == 1 && wrong.error.contains("line 4") && wrong.error.contains("2 events published"),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn a_tail_begins_with_the_latest_events_and_follows_what_comes() {
    for number in 0..3 {
        shop("tail", &format!("publish a.b {number}")).await;
    }
    let tail = shop("tail", "tail 'a.*' --last 2 --limit 4 --json");
    let more = async {
        for topic in ["other", "a.b", "a.c"] {
            shop("tail", &format!("publish {topic} '\"new\"'")).await;
        }
    };
    let from_now = shop("tail", "tail --limit 1 --json");
    let (tail, from_now, ()) = tokio::join!(tail, from_now, more);
    assert_eq!(from_now.lines()[0]["topic"], "other");
    assert_eq!(shop("tail", "tail --limit 0").await.out, "");
    let seen: Vec<_> =
        tail.lines().iter().map(|event| format!("{} {}", event["topic"], event["data"])).collect();
    assert_eq!(seen, ["\"a.b\" 1", "\"a.b\" 2", "\"a.b\" \"new\"", "\"a.c\" \"new\""]);
}

#[tokio::test]
async fn causes_are_drawn_as_a_tree() {
    business("causes").await;
    let tree = shop("causes", "log causes first").await.out;
    let [root, leaf] = tree.lines().collect::<Vec<_>>()[..] else { panic!("{tree}") };
    assert!(root.starts_with("order.placed  1  ") && root.ends_with("first  ◀"), "{tree}");
    assert!(leaf.starts_with("└─ item.reserved  1  "), "{tree}");
    let json = shop("causes", "log causes first --json").await.lines();
    assert_eq!(json[0]["effects"][0]["event"]["topic"], "item.reserved");
}

#[tokio::test]
async fn dead_letters_are_listed_mended_and_purged() {
    business("dead").await;
    let letter = &shop("dead", "dead-letters list --group stock --topic 'order.*' --kind rejected --json")
        .await
        .lines()[0];
    assert_eq!(
        (&letter["kind"], &letter["event"]["id"], &letter["attempts"]),
        (&json!("rejected"), &json!("second"), &json!(1))
    );
    for verb in ["list", "list --json", "republish", "purge"] {
        let slip = shop("dead", &format!("dead-letters {verb} --group stokc")).await;
        let said = "there is no group `stokc`; there are: `mail`, `old`, `stock`; did you mean \"stock\"?";
        assert!(slip.code == 3 && slip.error == said && slip.out.is_empty(), "{verb}: {slip:?}");
        let none = shop("dead", &format!("dead-letters {verb} --group old")).await;
        assert_eq!(none.code, 0, "the broker has this group, and nothing of it: {none:?}");
        for (topic, meant) in [("order.plcaed", "order.placed"), ("placed", "order.placed")] {
            let slip = shop("dead", &format!("dead-letters {verb} --topic {topic}")).await;
            assert!(slip.code == 3 && slip.error.contains(&format!("did you mean \"{meant}\"?")), "{slip:?}");
        }
        for topic in ["item.reserved", "door.opened", "'door.>'"] {
            let none = shop("dead", &format!("dead-letters {verb} --topic {topic}")).await;
            assert_eq!(none.code, 0, "{none:?}");
        }
    }
    let id = letter["id"].as_str().unwrap();
    let shown = shop("dead", &format!("dead-letters show {id}")).await.out;
    assert!(shown.contains("reserve") && shown.contains("\"item\": \"unicorn\""), "{shown}");
    assert_eq!(shop("dead", "dead-letters show 99").await.code, 3);
    assert_eq!(shop("dead", "dead-letters purge 99").await.code, 3);
    for verb in ["republish", "purge"] {
        let which = shop("dead", &format!("dead-letters {verb} --yes")).await;
        assert_eq!(which.code, 2, "{which:?}");
        for way in ["`dead-letters list`", "--all", "--group", "--topic", "--kind"] {
            assert!(which.error.contains(way), "{way}: {which:?}");
        }
    }
    // The in-process broker delivers again to a group that listens.
    let bus = Bus::builder().connect("kept:dead").await.unwrap();
    bus.start().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"id":2,"item":"horse"}"#).unwrap();
    let edited = shop("dead", &format!("dead-letters edit {id} --payload {}", file.path().display())).await;
    assert_eq!(edited.out, format!("delivered again dead letter {id} of stock\n"));
    bus.shutdown().await.unwrap();
    assert!(shop("dead", "log causes second").await.out.contains("└─ item.reserved"));
    let shown = shop("dead", "log show second").await.out;
    let (event, mended) = shown.split_once("\nmended for `stock`\n").unwrap_or_else(|| panic!("{shown}"));
    assert!(event.contains("\"item\": \"unicorn\""), "the event stays as it was: {shown}");
    assert_eq!(mended, "{\n  \"id\": 2,\n  \"item\": \"horse\"\n}\n");
    assert!(!shop("dead", "log show first").await.out.contains("mended"));
    let shown = shop("dead", "log show second --json").await;
    let mended = json!([{ "group": "stock", "data": { "id": 2, "item": "horse" } }]);
    assert_eq!(shown.lines()[0]["mended"], mended);
    shop("dead again", &format!("publish --cloudevents {}", quoted(&shown.raw))).await;
    let again = &shop("dead again", "log --json").await.lines()[0];
    assert_eq!((&again["data"]["item"], again.get("mended")), (&json!("unicorn"), None), "{again}");
    business("dead").await;
    let asked = shop("dead", "dead-letters republish --all").await;
    assert!(asked.code == 2 && asked.error.contains("--yes does it"), "{asked:?}");
    let asked = shop("dead", "dead-letters purge --all").await;
    assert!(asked.code == 2 && asked.error.contains("remove 1 dead letter for good?"), "{asked:?}");
    assert_eq!(shop("dead", "dead-letters list --json").await.lines().len(), 1);
    assert!(shop("dead", "dead-letters purge --all --yes").await.out.starts_with("removed dead letter"));
    assert_eq!(shop("dead", "dead-letters list --json").await.lines(), [Value::Null; 0]);
}

#[tokio::test]
async fn a_dead_letter_is_not_mended_with_what_is_no_json() {
    business("broken").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{").unwrap();
    let listed = shop("broken", "dead-letters list --json").await.lines();
    let id = listed[0]["id"].as_str().unwrap();
    let edited = shop("broken", &format!("dead-letters edit {id} --payload {}", file.path().display())).await;
    assert!(edited.code == 1 && edited.error.contains("no JSON"), "{edited:?}");
    assert_eq!(shop("broken", "dead-letters list --json").await.lines().len(), 1);
}

#[tokio::test]
async fn groups_are_moved_sought_and_dropped() {
    let seek = async |place| {
        assert_eq!(shop("groups", &format!("groups seek old {place} --yes")).await.code, 0);
        shop("groups", "groups list --json").await.lines()[0]["cursor"].clone()
    };
    shop("groups", "publish a 1").await;
    shop("groups", "publish a 2").await;
    assert_eq!(seek("latest").await, json!("1"));
    assert_eq!(seek("0").await, json!("0"));
    assert_eq!(seek("earliest").await, Value::Null);
    let slip = shop("groups", "groups move old stokc --yes").await;
    assert!(slip.code == 3 && slip.error.contains("did you mean \"stock\"?"), "{slip:?}");
    assert_eq!(shop("groups", "groups move old stock --yes").await.out, "`stock` goes on where `old` was\n");
    let subscriptions = shop("groups", "subscriptions").await.out;
    let stock = subscriptions.lines().find(|line| line.starts_with("stock ")).unwrap();
    assert!(
        stock.contains("1,234") && stock.contains("reserve") && stock.contains("shop.rs:"),
        "{subscriptions}"
    );
    let gone = shop("groups", "groups drop old").await;
    assert!(gone.code == 3 && gone.error.contains("no group `old`; there are: `"), "{gone:?}");
    let slip = shop("groups", "groups seek stokc latest").await;
    assert!(slip.code == 3 && slip.error.contains("did you mean \"stock\"?"), "{slip:?}");
    let other = shop("groups", "groups drop stock --pattern order.paid").await;
    assert!(other.code == 3 && other.error.contains("there are: `order.placed`"), "{other:?}");
    let live = shop("groups", "groups drop stock --yes").await;
    assert!(live.code == 1 && live.error.contains("reserve") && live.error.contains("--live"), "{live:?}");
    let asked = shop("groups", "groups drop stock --live").await;
    let question =
        "forget what `stock` has: a backlog of 1,234 events on \"order.placed\", 1 of it parked for a retry?";
    assert!(asked.code == 2 && asked.error.contains(question) && asked.error.contains("--yes"), "{asked:?}");
    assert_eq!(shop("groups", "groups drop stock --live --yes").await.code, 0);
}

#[tokio::test]
async fn what_the_broker_declines_is_said_before_anybody_is_asked_and_the_rest_is_there() {
    for (verb, said) in [
        ("groups seek old earliest", "cannot move the group `old` to another place"),
        ("groups seek old latest --yes", "what was settled is gone from its queue"),
        ("groups move old stock", "cannot give what the group `old` has to `stock`: a queue keeps its name"),
    ] {
        let declined = shop("queues", verb).await;
        assert!(declined.code == 1 && declined.error.contains(said), "{verb}: {declined:?}");
    }
    assert_eq!(shop("queues", "groups list --json").await.lines()[0]["group"], "old");
    assert_eq!(shop("queues", "groups drop old --yes").await.code, 0);
    assert_eq!(shop("queues", "groups seek old latest").await.code, 3, "there is no such group");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn beside_a_process_that_has_every_group_one_line_says_that_this_one_stands_by() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    let lines = Captured::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let told =
        || lines.text().lines().filter(|line| line.contains("stand")).map(str::to_owned).collect::<Vec<_>>();
    let first = Bus::builder().connect(&url).await.unwrap();
    first.start().unwrap();
    let alone = told();
    assert_eq!(alone.len(), 1, "{alone:?}");
    assert!(alone[0].contains("INFO") && alone[0].contains("groups=mail, stock"), "{alone:?}");
    let second = Bus::builder().connect(&url).await.unwrap();
    second.start().unwrap();
    let beside = &told()[1..];
    assert_eq!(beside.len(), 1, "{beside:?}");
    let words = "another bus of this process handles 2 groups: `mail`, `stock`; this one stands by";
    assert!(beside[0].contains("INFO") && beside[0].contains(words), "{beside:?}");
    second.shutdown().await.unwrap();
    first.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_status_of_each_group_is_shown_and_one_that_is_stalled_fails() {
    let unattended = shop("status", "status").await;
    assert_eq!(unattended.code, 0, "{unattended:?}");
    assert!(unattended.out.starts_with("✓ the kept broker answers\n"), "{unattended:?}");
    let row = unattended.out.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row, ["old", "order.placed", "unattended", "1,234", "1", "-", "2", "no"]);
    shop("status", "groups move old idle --live --yes").await;
    let idle = &shop("status", "status --json").await.lines()[0];
    assert_eq!(
        (&idle["group"], &idle["state"], &idle["backlog"]),
        (&json!("idle"), &json!("idle"), &json!(1))
    );
    assert_eq!((&idle["active"], &idle["last_active"]), (&json!(false), &Value::Null));
    shop("status", "groups move idle stuck --live --yes").await;
    let stalled = shop("status", "status").await;
    assert!(stalled.code == 1 && stalled.out.contains("stalled"), "{stalled:?}");
    shop("no status", "groups drop old --yes").await;
    let none = shop("no status", "status").await;
    assert!(none.code == 0 && none.error.contains("the broker knows no groups yet"), "{none:?}");
}

#[tokio::test]
async fn the_status_of_a_broker_that_is_lost_is_unknown_and_that_of_one_that_takes_less_is_not() {
    let lost = shop("lost", "status").await;
    let said = "the kept broker cannot be reached since 2026-01-01T00:00:00Z: it says so";
    assert!(lost.code == 4 && lost.error.contains(said), "{lost:?}");
    let away = shop("away", "status").await;
    assert!(away.code == 4 && away.error.contains("is not known: there is no server at `away`"), "{away:?}");
    let slowed = shop("slowed", "status").await;
    let said = "the kept broker takes less than it is asked for since 2026-01-01T00:00:00Z: it says so";
    assert!(slowed.code == 0 && slowed.error.contains(said), "{slowed:?}");
    assert!(slowed.out.contains("unattended"), "the groups are shown all the same: {slowed:?}");
    for told in [lost, slowed] {
        assert!(!told.error.contains('\x07'), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_broker_that_does_not_say_it_is_unknown_and_neither_well_nor_stalled() {
    let silent = shop("silent", "status").await;
    assert_eq!((silent.code, &*silent.out), (4, ""), "{silent:?}");
    let said = "not known: the kept broker can be reached, and has not said how far they have come: it took longer than";
    assert!(silent.error.contains(said), "{silent:?}");
    let refusing = shop("refusing", "status").await;
    assert!(refusing.code == 4 && refusing.error.contains("you may not list queues"), "{refusing:?}");
    let uncounted = shop("uncounted", "status").await;
    assert_eq!(uncounted.code, 4, "{uncounted:?}");
    let row = uncounted.out.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row, ["old", "order.placed", "unknown", "-", "1", "-", "2", "no"]);
    let uncounted = shop("uncounted", "status --json").await;
    let told: Value = serde_json::from_str(&uncounted.raw).unwrap();
    assert_eq!((&told["state"], &told["backlog"]), (&json!("unknown"), &Value::Null));
}

#[tokio::test]
async fn a_replay_reports_its_progress_and_names_what_fails() {
    business("replay").await;
    let replayed = shop("replay", "replay stock --from 0 --until 0 --json --yes").await.lines();
    let report = &replayed.last().unwrap()["report"];
    assert_eq!((&report["events"], &report["acked"]), (&json!(1), &json!(1)));
    assert!(replayed[0]["progress"]["percent"].is_number(), "{replayed:?}");
    let letters = async || shop("replay", "dead-letters list --json").await.raw;
    let before = letters().await;
    let failed = shop("replay", "replay stock --until 2 --yes").await;
    assert!(failed.code == 1 && failed.error.contains("1 of 2 events failed"), "{failed:?}");
    assert!(failed.error.contains("--skip-failures"), "{failed:?}");
    assert!(failed.out.contains("failed order.placed at 1, rejected: "), "{failed:?}");
    let skipped = shop("replay", "replay stock --until 2 --skip-failures --json --yes").await;
    assert_eq!(skipped.code, 0, "{skipped:?}");
    let skipped = skipped.lines();
    let [.., failure, report] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!((&failure["failure"]["offset"], &report["report"]["failed"]), (&json!("1"), &json!(1)));
    assert_eq!(letters().await, before, "what fails in a replay becomes no dead letter");
    let refused = shop("replay", "replay mail").await;
    assert!(refused.code == 1 && refused.error.contains("--insist"), "{refused:?}");
    assert_eq!(shop("replay", "replay mail --insist --yes").await.code, 0);
    let nobody = shop("replay", "replay nobody").await;
    assert!(nobody.code == 3 && nobody.error.contains("no group `nobody`; there are: "), "{nobody:?}");
}

#[tokio::test]
async fn a_replay_asks_before_effects_happen_again() {
    business("replay asked").await;
    let before = shop("replay asked", "log --json").await.raw;
    let asked = shop("replay asked", "replay stock").await;
    assert_eq!(asked.code, 2, "{asked:?}");
    for words in ["replay 2 events to `reserve` (", "shop.rs:", "its effects happen again? ", "--yes does it"]
    {
        assert!(asked.error.contains(words), "{words}: {asked:?}");
    }
    let insisted = shop("replay asked", "replay mail --insist --until live").await;
    assert_eq!(insisted.code, 2, "{insisted:?}");
    assert!(
        insisted.error.contains("replay 1 event and what is published from now on to `confirm`"),
        "{insisted:?}"
    );
    assert_eq!(shop("replay asked", "log --json").await.raw, before, "nothing was replayed");
}

#[tokio::test]
async fn what_an_event_holds_stays_text() {
    let hostile = "\u{1b}[2J\u{9b}2J\u{202e}\r";
    let bus = Bus::builder().connect("kept:hostile").await.unwrap();
    bus.start().unwrap();
    let topic = Topic::from_static("order.placed");
    let payload = Bytes::from(format!("[\"{}\"]{hostile}", "unclosed"));
    let envelope =
        Envelope::from_bytes(topic, "text/plain", payload).with_key(hostile).with_id(EventId::new("x"));
    bus.publish_envelope(envelope.with_header("note", hostile).with_source(hostile)).await.unwrap();
    bus.publish(&OrderPlaced { id: 2, item: "unicorn".into() }).await.unwrap();
    bus.shutdown().await.unwrap();
    for verb in [
        "log",
        "log show x",
        "log causes x",
        "tail --last 9 --limit 2",
        "dead-letters list",
        "dead-letters show 1",
        "dead-letters show 2",
    ] {
        for json in ["", " --json"] {
            let raw = shop("hostile", &format!("{verb}{json}")).await.raw;
            let ours = raw
                .split("\u{1b}[")
                .skip(1)
                .all(|code| code.starts_with(|c: char| c.is_ascii_digit()) && !code.starts_with("2J"));
            assert!(ours && !raw.contains(['\u{9b}', '\u{202e}', '\r']), "{verb}{json}: {raw:?}");
        }
    }
}

#[tokio::test]
async fn topics_name_their_events_and_listeners() {
    let topics = shop("topics", "topics --json").await.lines();
    let placed = topics.iter().find(|topic| topic["topic"] == "order.placed").unwrap();
    assert_eq!((&placed["events"][0]["name"], &placed["groups"]), (&json!("OrderPlaced"), &json!(["stock"])));
    assert!(shop("topics", "topics").await.out.contains("ItemReserved"));
}

#[tokio::test]
async fn what_a_server_lacks_is_a_mistake_where_it_is_only_checked() {
    assert_eq!(shop("made", "check").await.code, 0);
    let lacks = shop("unmade?topology=check", "check --json").await;
    let told: Value = serde_json::from_str(&lacks.raw).unwrap();
    let mut mistakes: Vec<_> =
        told["mistakes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    mistakes.sort_unstable();
    let said = ["there is no queue for the group `mail`", "there is no queue for the group `stock`"];
    assert_eq!((lacks.code, mistakes), (1, said.to_vec()), "{lacks:?}");
    assert_eq!(shop("unmade?topology=create", "check").await.code, 0, "a start makes it");
}
