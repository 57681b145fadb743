//! What a person sees: each verb that prints a table, on terminals of 60, 80 and 120 columns and in a pipe, compared with
//! the files in `captures/`. `UPDATE_CAPTURES=1 cargo test -p eventbus-cli --lib captures` writes them anew.

use crate::output::{Captured, Output};
use crate::session::Session;
use crate::verbs::{StandaloneVerb, Verb};
use bytes::Bytes;
use clap::{FromArgMatches, Subcommand};
use console::measure_text_width;
use eventbus::broker::{
    AuditLog, AuditQuery, Backlog, Broker, BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList,
    DeadLetterQuery, DeadLetters, Deliveries, FailureKind, Features, GroupState, Groups, Offset, Recorded,
    Scheme, SubscribeRequest,
};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Envelope, EventId, PublishError, Topic};
use jiff::{SignedDuration, Timestamp};
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

/// When captures are taken: noon of 2026-07-01, in seconds since 1970.
pub(crate) const NOW: i64 = 1_782_907_200;

eventbus_core::register_scheme!(Scheme { name: "still", open: |_| BrokerFuture::ready(Ok(Arc::new(Still))) });

/// A broker that always holds the same.
#[derive(Clone, Copy)]
struct Still;

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW).unwrap() - SignedDuration::from_secs(seconds)
}

/// The events of the log, of all kinds of odd ones.
fn events() -> Vec<Recorded> {
    let bytes = |topic, content_type, payload: &'static [u8], id: u128| {
        Envelope::from_bytes(Topic::from_static(topic), content_type, Bytes::from_static(payload))
            .with_id(EventId::from_u128(0x0198_c5c2_0000_7000_8000_0000_0000_0000 + id))
            .with_source("/shop")
    };
    let order =
        br#"{"id": 1042, "customer": "ada@example.com", "items": ["book", "pen", "a lamp for the desk"]}"#;
    let placed = bytes("order.placed", "application/json", order, 1).with_key(1042).with_time(ago(200_000));
    let reserved = bytes("inventory.item.reserved", "application/json", br#"{"order":1042}"#, 2)
        .with_key("order-1042/warehouse-berlin-7")
        .with_time(ago(7_300))
        .caused_by(&placed);
    let mailed = bytes("mail.sent", "text/plain", "ご注文ありがとうございます 🎉 ".as_bytes(), 3)
        .with_key("注文-1042-東京都千代田区")
        .with_time(ago(130))
        .with_header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .caused_by(&reserved);
    let scanned = bytes("scan.stored", "image/png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 4).with_time(ago(2));
    let hostile = bytes("order.placed", "text/plain", b"a\nERROR \x1b[2J gone", 5)
        .with_key("🦄🦄🦄🦄🦄🦄")
        .with_time(ago(0));
    let offsets = [1_u128, 2, 37, 1_204, 98_765];
    let all = [placed, reserved, mailed, scanned, hostile];
    let recorded =
        |(offset, envelope)| Recorded { offset: Offset::new(offset), envelope: Arc::new(envelope) };
    offsets.into_iter().zip(all).map(recorded).collect()
}

fn letters() -> DeadLetterList {
    let reasons = [
        (7, "stock", FailureKind::Rejected, 1, 95, "`a lamp for the desk` is not in stock"),
        (
            8,
            "accounting.invoices.write_invoice",
            FailureKind::Failed,
            5,
            4_000,
            "cannot write invoice 1042: connection to http://invoices.internal:8080/v2/invoices refused: \
             the service is down for maintenance until tomorrow",
        ),
        (1_234, "mail", FailureKind::TimedOut, 5, 90_000, "60s was not enough"),
        (
            1_235,
            "audit",
            FailureKind::Undecodable,
            1,
            3,
            "品切れのため注文を処理できませんでした 🦄\nsecond line",
        ),
    ];
    let letter = |((id, group, kind, attempts, seconds, reason), event): (_, Recorded)| {
        let (group, reason): (&str, &str) = (group, reason);
        let letter = DeadLetter {
            envelope: event.envelope,
            offset: event.offset,
            group: group.to_owned(),
            handler: "reserve (src/orders/handlers/stock.rs:127)".to_owned(),
            kind,
            reason: reason.to_owned(),
            attempts,
            first_failed_at: ago(seconds + 60),
            last_failed_at: ago(seconds),
        };
        (DeadLetterId::from(id), Arc::new(letter))
    };
    reasons.into_iter().zip(events()).map(letter).collect()
}

impl Broker for Still {
    fn name(&self) -> &str {
        "still"
    }

    fn features(&self) -> Features {
        let mut features = MemoryBroker::new().features();
        features.backlog = Backlog::Exactly;
        features
    }

    fn publish(&self, _: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        MemoryBroker::new().subscribe(request)
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(*self))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        Some(Arc::new(*self))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::new(*self))
    }

    fn drain(&self, _: &[SubscribeRequest]) -> BrokerFuture<()> {
        BrokerFuture::ready(())
    }
}

impl AuditLog for Still {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let behind = |event: &Recorded| query.after.is_none_or(|after| event.offset > after);
        let there = |event: &Recorded| query.offset.is_none_or(|place| event.offset == place);
        let found = events().into_iter().filter(|event| query.matches(&event.envelope));
        let found = found.filter(|event| behind(event) && there(event));
        let mut found: Vec<_> = found.collect();
        if query.newest_first {
            found.reverse();
        }
        found.truncate(query.limit);
        BrokerFuture::ready(Ok(found))
    }

    fn wait(&self, _: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        BrokerFuture::ready(Ok(Some(Offset::new(98_765))))
    }
}

impl DeadLetters for Still {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let found = letters().into_iter().filter(|(id, letter)| query.matches(id, letter));
        BrokerFuture::ready(Ok(found.collect()))
    }

    fn republish(&self, _: &DeadLetterId, _: Option<Bytes>) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }

    fn purge(&self, _: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }
}

impl Groups for Still {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let state = |group: &str, pattern: &str, cursor, backlog, parked, dead_letters, active| {
            let mut state = GroupState::new(group, pattern);
            state.oldest = (backlog > 0).then(|| ago(backlog as i64 % 9_000));
            (state.cursor, state.backlog, state.parked) = (cursor, backlog, parked);
            (state.dead_letters, state.active) = (dead_letters, active);
            state.last_active = Some(ago(if active { 1 } else { 3 * 86_400 }));
            state
        };
        BrokerFuture::ready(Ok(vec![
            state(
                "accounting.invoices.write_invoice",
                "order.placed",
                Some(Offset::new(98_764)),
                1,
                0,
                1,
                true,
            ),
            state("mail", "inventory.item.reserved", Some(Offset::new(37)), 1_234_567, 12, 1, false),
            state("stock", "order.placed", None, 98_765, 0, 1, true),
        ]))
    }

    fn remove(&self, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }
}

/// What a verb writes on a terminal of `width` columns, or into a pipe.
async fn seen(line: &str, width: Option<usize>) -> String {
    let (out, remarks) = (Captured::default(), Captured::default());
    let output = Output::captured(false, width, out.clone(), remarks.clone());
    let mut session = Session { url: "still:".to_owned(), out: output, builder: Bus::builder() };
    let words = shlex::split(line).unwrap();
    let command = clap::Command::new("shop").no_binary_name(true);
    let result = if line == "topics --since 1d" {
        let matches = StandaloneVerb::augment_subcommands(command).try_get_matches_from(words).unwrap();
        StandaloneVerb::from_arg_matches(&matches).unwrap().execute(&mut session).await
    } else {
        let matches = Verb::augment_subcommands(command).try_get_matches_from(words).unwrap();
        Verb::from_arg_matches(&matches).unwrap().execute(&mut session).await
    };
    // A group that is stalled is no success.
    assert!(result.is_ok() || line == "status", "{line}: {result:?}");
    session.out.flush().unwrap();
    console::strip_ansi_codes(&out.text()).into_owned()
}

/// Compares with the file, or writes it where that is asked for.
fn compare(name: &str, seen: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(name).with_extension("txt");
    if env::var_os("UPDATE_CAPTURES").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, seen).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == seen,
        "`{}` says otherwise (UPDATE_CAPTURES=1 writes it anew):\n{seen}",
        path.display()
    );
}

async fn capture(name: &str, line: &str) {
    let mut all = String::new();
    for width in [60, 80, 120] {
        let seen = seen(line, Some(width)).await;
        // What is shown in full is not cut, so a payload may be longer.
        for line in seen.lines().filter(|_| !name.contains("show")) {
            assert!(measure_text_width(line) <= width, "{name} at {width}: {line}");
        }
        all.push_str(&format!("$ {line}   # {width} columns\n{seen}\n"));
    }
    all.push_str(&format!("$ {line} | cat\n{}", seen(line, None).await));
    compare(name, &all);
}

#[tokio::test]
async fn what_is_listed_fits_every_terminal() {
    for (name, line) in [
        ("log", "log"),
        ("tail", "tail --last 5 --limit 5"),
        ("causes", "log causes 2"),
        ("groups", "groups list"),
        ("status", "status"),
        ("dead-letters", "dead-letters list"),
        ("topics-in-log", "topics --since 1d"),
    ] {
        capture(name, line).await;
    }
}

#[tokio::test]
async fn what_the_program_has_fits_every_terminal() {
    for (name, line) in [("topics", "topics"), ("subscriptions", "subscriptions")] {
        capture(name, line).await;
    }
}

#[tokio::test]
async fn what_is_shown_in_full_is_broken_between_words() {
    for (name, line) in [
        ("log-show", "log show 37"),
        ("log-show-bytes", "log show 1204"),
        ("dead-letters-show", "dead-letters show 8"),
    ] {
        capture(name, line).await;
    }
}
