//! Groups as queues: who lists them, and who may drop them. Names are promises.

mod support;

use eventbus::Delivery;
use eventbus::broker::{Broker, GroupState, Groups};
use eventbus_aws::AwsBroker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::gateway::Gateway;
use support::{ack, connect, event, number, prefix, receive, request, server, until, url, url_at};

async fn state(groups: &Arc<dyn Groups>, group: &str) -> Option<GroupState> {
    groups.list().await.unwrap().into_iter().find(|state| state.group == group)
}

/// How many subscriptions of topics there are whose queues have names that begin so.
async fn subscriptions(broker: &AwsBroker, queue: &str) -> usize {
    let (mut count, mut next) = (0, None);
    loop {
        let page = broker.sns().list_subscriptions().set_next_token(next).send().await.unwrap();
        let endpoints = page.subscriptions().iter().filter_map(|one| one.endpoint());
        count += endpoints.filter(|endpoint| endpoint.contains(queue)).count();
        next = page.next_token;
        if next.is_none() {
            return count;
        }
    }
}

#[tokio::test]
async fn a_group_is_dropped_only_while_no_process_reads_its_queue_and_leaves_nothing_but_dead_letters() {
    let prefix = prefix();
    let (reading, looking) = (connect(&url(&prefix, true)).await, connect(&url(&prefix, true)).await);
    let groups = looking.groups().unwrap();
    assert!(groups.list().await.unwrap().is_empty());
    let mut deliveries = reading.subscribe(request("ma#il (1)", "a.b")).await.unwrap();
    let wild = reading.subscribe(request("ma#il (1)", "a.>")).await.unwrap();
    reading.publish(event("a.b", "k", 1)).await.unwrap();
    let held = receive(&mut deliveries, 1).await.remove(0);
    let listed = groups.list().await.unwrap();
    let seen: Vec<_> =
        listed.iter().map(|one| (&*one.group, &*one.pattern, one.backlog, one.active)).collect();
    assert_eq!(seen, [("ma#il (1)", "a.>", 1, true), ("ma#il (1)", "a.b", 1, true)]);
    for refused in [groups.remove("ma#il (1)").await, groups.remove_on("ma#il (1)", "a.b").await] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("some process handles the group `ma#il (1)` on \"a."), "{error}");
    }
    ack(held).await;
    drop(deliveries);
    until("one queue is not read any more", async || {
        let listed = groups.list().await.unwrap();
        listed.iter().any(|one| one.pattern == "a.b" && !one.active)
    })
    .await;
    assert!(!groups.remove_on("ma#il (1)", "a.c").await.unwrap(), "it has no such queue");
    assert!(groups.remove_on("ma#il (1)", "a.b").await.unwrap());
    let left = state(&groups, "ma#il (1)").await.expect("the other queue is there");
    assert!(left.pattern == "a.>" && left.active, "{left:?}");
    assert_eq!(subscriptions(&looking, &format!("{prefix}-group-")).await, 0, "its topics are told");
    assert_eq!(subscriptions(&looking, &format!("{prefix}-any-")).await, 1);
    drop(wild);
    until("nobody reads", async || state(&groups, "ma#il (1)").await.is_some_and(|state| !state.active))
        .await;
    assert!(groups.remove("ma#il (1)").await.unwrap() && !groups.remove("ma#il (1)").await.unwrap());
    assert!(groups.list().await.unwrap().is_empty());
    let dead = looking.sqs().list_queues().queue_name_prefix(format!("{prefix}-dead-")).send().await.unwrap();
    assert_eq!(dead.queue_urls().len(), 1, "its dead letters stay");
    // The group is new.
    let mut deliveries = reading.subscribe(request("ma#il (1)", "a.b")).await.unwrap();
    reading.publish(event("a.b", "k", 2)).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2);
}

#[tokio::test]
async fn what_is_only_checked_is_listed_and_not_dropped() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, false)).await;
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    let checking = connect(&format!("{}&topology=check", url(&prefix, false))).await;
    let groups = checking.groups().unwrap();
    until("nobody reads", async || state(&groups, "mail").await.is_some_and(|state| !state.active)).await;
    let deliveries = checking.subscribe(request("mail", "a.b")).await.unwrap();
    assert!(state(&groups, "mail").await.unwrap().active, "this process reads it");
    let error = groups.remove("mail").await.unwrap_err().to_string();
    assert!(error.contains("`topology=check`") && error.contains("`mail`"), "{error}");
    drop(deliveries);
}

#[tokio::test]
async fn who_may_not_list_or_tag_queues_has_its_group_all_the_same() {
    let prefix = prefix();
    for (topology, denied) in
        [("create", ["ListQueueTags", "TagQueue"]), ("check", ["ListQueues", "ListQueueTags"])]
    {
        let gateway = Gateway::to(&server()).await;
        gateway.answer(move |name| denied.contains(&name).then_some((403, "AccessDenied")));
        let at = format!("{}&topology={topology}", url_at(&gateway.url(), &prefix, false));
        let broker = connect(&at).await;
        let bus = eventbus::Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
        let handled = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&handled);
        let handler = move |_: Delivery| {
            note.store(true, Ordering::SeqCst);
            async {}
        };
        bus.on_topic("a.b", handler).group("mail").competing(true).await.unwrap();
        let error = broker.groups().unwrap().list().await.unwrap_err().to_string();
        assert!(error.contains("allow it in the policy of the user or role"), "{error}");
        bus.start().unwrap();
        let health = bus.health().await;
        assert!(health.is_healthy(), "{health:?}");
        bus.publish_envelope((*event("a.b", "k", 1)).clone()).await.unwrap();
        until("it is handled", async || handled.load(Ordering::SeqCst)).await;
        bus.shutdown().await.unwrap();
    }
}
