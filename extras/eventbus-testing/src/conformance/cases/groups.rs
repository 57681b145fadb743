//! Groups, as whoever looks after a broker sees them.

use crate::conformance::case::{Case, number, numbered, publish, publish_envelopes};
use eventbus_core::broker::{Backlog, GroupState, Groups};
use eventbus_core::jiff::Timestamp;
use eventbus_core::{BrokerError, Bus, Delivery, Outcome};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Those of this run, or none, where the broker keeps no cursors and says so.
fn groups_of(case: &Case, bus: &Bus) -> Option<Arc<dyn Groups>> {
    match bus.groups() {
        Ok(groups) => Some(groups),
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains(case.name()) && error.contains("groups"), "{error}");
            None
        }
    }
}

/// What the broker knows of a group.
async fn state(case: &Case, groups: &Arc<dyn Groups>, group: &str) -> Option<GroupState> {
    let states = groups.list().await.unwrap();
    states.into_iter().find(|state| state.group == case.group(group))
}

/// A group is listed with its pattern, whether somebody handles it and has lately, how many events it has yet to settle, how many of them
/// wait for a retry, since when the oldest waits, and its dead letters: as well as the broker declares to know it.
pub(super) async fn groups_are_listed_with_what_they_have_to_do(case: Arc<Case>) {
    const EVENTS: u64 = 12;
    // A broker notes each while that somebody is there.
    const SLOWLY: i64 = 300;
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let open = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&open);
    let handle = move |delivery: Delivery| {
        let outcome = match (switch.load(Ordering::SeqCst), number(&delivery)) {
            (_, 0) => Outcome::Reject("never".into()),
            (true, _) => Outcome::Ack,
            (false, _) => Outcome::RetryAfter(Duration::from_millis(200)),
        };
        async move { outcome }
    };
    let subscribed = bus.on_topic(&topic, handle).group(case.group("mail")).retries(u32::MAX);
    subscribed.await.unwrap();
    bus.start_quietly().unwrap();
    let Some(groups) = groups_of(&case, &bus) else { return };
    let began = Timestamp::now();
    publish(&bus, &topic, 0..EVENTS).await;
    let knows = case.features().backlog;
    let waits = |state: &GroupState| match knows {
        Backlog::Exactly => state.backlog == EVENTS - 1 && state.parked == EVENTS - 1,
        Backlog::Nearly => state.backlog > 0,
        _ => state.backlog == 0,
    };
    case.until("its backlog is listed", async || {
        state(&case, &groups, "mail").await.is_some_and(|state| waits(&state) && state.active)
    })
    .await;
    let listed = state(&case, &groups, "mail").await.expect("it is listed");
    assert_eq!(listed.pattern, topic.as_str());
    if let Some(oldest) = listed.oldest {
        let (earliest, now) = (began.as_second() - 1, Timestamp::now());
        assert!(oldest.as_second() >= earliest && oldest <= now, "{oldest} is not between {began} and {now}");
    }
    if let Some(last) = listed.last_active {
        let (earliest, now) = (began.as_second() - SLOWLY, Timestamp::now());
        assert!(last.as_second() >= earliest && last <= now, "{last} is not between {began} and {now}");
    }
    if bus.dead_letters().is_ok() {
        case.until("its dead letter is counted", async || {
            state(&case, &groups, "mail").await.is_some_and(|state| state.dead_letters == 1)
        })
        .await;
    }
    open.store(true, Ordering::SeqCst);
    case.until("nothing is left", async || {
        let done = |state: GroupState| (state.backlog, state.parked, state.oldest) == (0, 0, None);
        state(&case, &groups, "mail").await.is_some_and(done)
    })
    .await;
}

/// Whether what the broker was asked for was done, where it declares that it can do that; otherwise it declines, names the
/// group, and does nothing.
fn done(answer: Result<bool, BrokerError>, declared: bool, group: &str) -> bool {
    match answer {
        Ok(done) => {
            assert!(declared, "what is not declared is declined");
            done
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!declared && error.contains(group) && error.contains("cannot"), "{error}");
            false
        }
    }
}

/// Waits until nobody handles a group.
async fn released(case: &Case, groups: &Arc<dyn Groups>, group: &str) {
    case.until("nobody handles it", async || {
        state(case, groups, group).await.is_some_and(|state| !state.active)
    })
    .await;
}

/// A group is moved, renamed or dropped while nobody handles it, and not before; what it gets then is what that says. What
/// the broker does not declare it declines, and the group is as it was.
pub(super) async fn groups_are_moved_renamed_and_dropped_only_while_nobody_handles_them(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    if groups_of(&case, &bus).is_none() {
        return;
    }
    let (seeks, renames) = (case.features().seek, case.features().rename);
    publish(&bus, &topic, 0..4).await;
    seen.reach(4).await;
    let groups = bus.groups().unwrap();
    let (mail, post) = (&case.group("mail"), &case.group("post"));
    for refused in [groups.seek(mail, None).await, groups.remove(mail).await, groups.rename(mail, post).await]
    {
        let error = refused.expect_err("some process handles it").to_string();
        assert!(error.contains(mail.as_str()), "{error}");
    }
    bus.shutdown().await.unwrap();

    let bus = case.bus().await;
    let groups = bus.groups().unwrap();
    let nobody = &case.group("nobody");
    assert!(!done(groups.seek(nobody, None).await, seeks, nobody));
    assert!(!done(groups.rename(nobody, post).await, renames, nobody));
    assert!(matches!(groups.remove(nobody).await, Ok(false)));
    released(&case, &groups, "mail").await;
    assert_eq!(done(groups.seek(mail, None).await, seeks, mail), seeks);
    assert_eq!(done(groups.rename(mail, post).await, renames, mail), renames);
    assert!(!done(groups.rename(if renames { mail } else { nobody }, post).await, renames, ""));
    let heir = if renames { "post" } else { "mail" };
    publish(&bus, &topic, 4..6).await;
    let again = case.notes(&bus, &topic, heir).await;
    bus.start_quietly().unwrap();
    let wanted: Vec<_> = (if seeks { 0..6 } else { 4..6 }).collect();
    again.reach(wanted.len()).await;
    case.quiet(&bus).await;
    assert_eq!((seen.len(), again.sorted()), (4, wanted), "from where it was put, or was");
    bus.shutdown().await.unwrap();

    let bus = case.bus().await;
    let groups = bus.groups().unwrap();
    released(&case, &groups, heir).await;
    publish(&bus, &topic, 6..8).await;
    let heirs = &case.group(heir);
    assert!(groups.remove(heirs).await.unwrap() && !groups.remove(heirs).await.unwrap());
    assert!(state(&case, &groups, heir).await.is_none());
    let anew = case.notes(&bus, &topic, heir).await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 8..10).await;
    anew.reach(2).await;
    case.quiet(&bus).await;
    assert_eq!(anew.sorted(), [8, 9], "it is a new group");
}

/// A cursor is moved to behind a place: what follows is delivered, what is before is not. Where the broker does not move
/// groups, it says so, and the group goes on where it was.
pub(super) async fn a_group_that_was_moved_to_a_place_goes_on_behind_it(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.seen();
    let noting = seen.noting(|delivery| (number(delivery), delivery.offset()));
    bus.on_topic(&topic, noting).group(case.group("mail")).await.unwrap();
    bus.start_quietly().unwrap();
    if groups_of(&case, &bus).is_none() {
        return;
    }
    // Of one key, whose places are in the order of the publishes wherever a broker keeps them.
    publish_envelopes(&bus, (0..6).map(|number| numbered(&topic, number).with_key("door"))).await;
    let (_, place) = seen.find("the third is handled", |(number, _)| *number == 2).await;
    seen.reach(6).await;
    bus.shutdown().await.unwrap();
    let bus = case.bus().await;
    let groups = bus.groups().unwrap();
    released(&case, &groups, "mail").await;
    let (mail, seeks) = (&case.group("mail"), case.features().seek);
    assert_eq!(done(groups.seek(mail, Some(place)).await, seeks, mail), seeks);
    if seeks && case.features().backlog == Backlog::Exactly {
        assert_eq!(state(&case, &groups, "mail").await.map(|state| state.backlog), Some(3));
    }
    publish(&bus, &topic, 6..7).await;
    let again = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    let wanted: Vec<_> = (if seeks { 3..7 } else { 6..7 }).collect();
    again.reach(wanted.len()).await;
    case.quiet(&bus).await;
    assert_eq!(again.sorted(), wanted);
}
