//! What does not answer: one queue, one channel, one connection. The others go on.

mod support;

use eventbus::PublishError;
use eventbus::broker::{Broker, Connection};
use eventbus_rabbitmq::RabbitMqBroker;
use eventbus_rabbitmq::lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use eventbus_rabbitmq::lapin::types::FieldTable;
use std::time::{Duration, Instant};
use support::between::{Apart, Between};
use support::{
    ack, behind_proxy, builder, connect, event, exchange, number, receive, remove, request, server, until,
    url_at,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_queue_that_the_server_cannot_consume_from_takes_no_other_group_down() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let mut good = broker.subscribe(request("good", "a.b")).await.unwrap();
    let mut bad = broker.subscribe(request("bad", "a.b")).await.unwrap();
    let queue = format!("{exchange}:group:bad:a.b");
    between.break_queue(Some(queue.clone()));
    let channel = broker.channel().await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    until("its connection is ended once", async || between.ends() > 0).await;
    until("it is published", async || broker.publish(event("a.b", "k", 1)).await.is_ok()).await;
    let held = receive(&mut good, 1).await.remove(0);
    let ends = between.ends();
    until("it is ended some times more", async || between.ends() >= ends + 3).await;
    assert!(held.settler.holds(&held.receipt), "what another group has is out of danger");
    ack(held).await;
    between.break_queue(None);
    let strict = builder(&exchange).mandatory(true).connect().await.unwrap();
    until("the queue is bound", async || strict.publish(event("a.b", "k", 2)).await.is_ok()).await;
    for deliveries in [&mut good, &mut bad] {
        let mut received = receive(deliveries, 1).await.remove(0);
        if number(&received) == 1 {
            ack(received).await;
            received = receive(deliveries, 1).await.remove(0);
        }
        assert_eq!(number(&received), 2);
        ack(received).await;
    }
    strict.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// Has the server end the connection of all for the queue of the group `bad`, which is to read by one of its own then.
async fn part(between: &Between, broker: &RabbitMqBroker, exchange: &str) {
    let queue = format!("{exchange}:group:bad:a.b");
    between.break_queue(Some(queue.clone()));
    let channel = broker.channel().await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    until("it has a connection of its own", async || between.parted() > 0).await;
    between.break_queue(None);
    until("the others have theirs again", async || {
        broker.publish(event("a.b", "k", 0)).await.is_ok() && broker.channel().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_reads_by_a_connection_of_its_own_is_known_to_be_cut_off() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let mut bad = broker.subscribe(request("bad", "a.b")).await.unwrap();
    part(&between, &broker, &exchange).await;
    until("all are there", async || broker.connection() == Connection::Up).await;
    let mut good = broker.subscribe(request("good", "a.b")).await.unwrap();
    between.treat_apart(Apart::Cut);
    let mut said = String::new();
    until("the loss is known", async || match broker.connection() {
        Connection::Lost { error, .. } => {
            said = error;
            true
        }
        _ => false,
    })
    .await;
    assert!(said.contains("`bad`") && said.contains("a connection of its own"), "{said}");
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    ack(receive(&mut good, 1).await.remove(0)).await;
    between.treat_apart(Apart::Pass);
    loop {
        let received = receive(&mut bad, 1).await.remove(0);
        let number = number(&received);
        // It is lost with its connection, or there is another one.
        let _ = received.settler.ack(received.receipt).await;
        if number == 1 {
            break;
        }
    }
    until("it is known to be back", async || broker.connection() == Connection::Up).await;
    broker.close().await.unwrap();
    assert_eq!(broker.connection(), Connection::Up, "nobody needs a connection any more");
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_does_not_wait_for_a_connection_of_its_own_that_a_group_has_yet_to_get() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&format!("{}&connect_timeout=1h", url_at(&between.url, &exchange))).await;
    let _bad = broker.subscribe(request("bad", "a.b")).await.unwrap();
    between.treat_apart(Apart::Mute);
    part(&between, &broker, &exchange).await;
    until("the others are there", async || broker.connection() == Connection::Up).await;
    let begun = Instant::now();
    broker.close().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_is_not_waited_for_without_end() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let broker = connect(&format!("{}&heartbeat=600s", url_at(&url, &exchange))).await;
    proxy.mute(true);
    let begun = Instant::now();
    let error = broker.channel().await.expect_err("the server says nothing");
    assert!(
        eventbus_core::chain(&error).contains("no answer within 10s"),
        "{}",
        eventbus_core::chain(&error)
    );
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    proxy.mute(false);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_confirms_nothing_any_more_is_replaced() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&format!("{}&publish_timeout=3s", url_at(&between.url, &exchange))).await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    between.wedge();
    let unconfirmed = broker.publish(event("a.b", "k", 2)).await;
    assert!(matches!(&unconfirmed, Err(PublishError::Unconfirmed { .. })), "{unconfirmed:?}");
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_answers_nothing_to_whoever_publishes_is_replaced() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let options = "publish_timeout=3s&heartbeat=600s";
    let broker = connect(&format!("{}&{options}", url_at(&between.url, &exchange))).await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    between.deafen();
    let unconfirmed = broker.publish(event("a.b", "k", 2)).await;
    assert!(matches!(&unconfirmed, Err(PublishError::Unconfirmed { .. })), "{unconfirmed:?}");
    until("it is published", async || broker.publish(event("a.b", "k", 3)).await.is_ok()).await;
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn more_subscriptions_than_channels_are_an_error_that_says_what_to_do() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    between.limit_channels(4);
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let mut open = Vec::new();
    let error = loop {
        match broker.subscribe(request(&format!("group{}", open.len()), "a.b")).await {
            Ok(deliveries) => open.push(deliveries),
            Err(error) => break error,
        }
        assert!(open.len() < 4);
    };
    let said = eventbus_core::chain(&error);
    assert!(said.contains("`channel_max`") && said.contains(&format!("`group{}`", open.len())), "{said}");
    drop(open);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// The numbers of channels come round again, and the client goes on to say of each what was refused on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_on_a_channel_is_not_said_of_a_later_one_with_its_number() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    between.limit_channels(40);
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let other = builder(&exchange).connect().await.unwrap();
    let there = broker.subscribe(request("there", "a.b")).await.unwrap();
    drop(broker.subscribe(request("gone", "a.b")).await.unwrap());
    let channel = other.channel().await.unwrap();
    let queue = format!("{exchange}:group:gone:a.b");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let groups = broker.groups().unwrap();
    for look in 0..60 {
        let listed = groups.list().await.unwrap();
        let names: Vec<_> = listed.iter().map(|state| state.group.as_str()).collect();
        assert_eq!(names, ["there"], "look {look}");
    }
    drop(there);
    other.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_the_groups_whose_answer_is_late_leaves_no_consumer() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let other = builder(&exchange).connect().await.unwrap();
    let deliveries = other.subscribe(request("mail", "a.b")).await.unwrap();
    let stream = format!("{exchange}:groups");
    between.delay_queue(Some(stream.clone()));
    let groups = broker.groups().unwrap();
    groups.list().await.expect_err("nobody answers");
    between.delay_queue(None);
    assert_eq!(groups.list().await.unwrap().len(), 1);
    let channel = other.channel().await.unwrap();
    until("nobody reads the stream", async || {
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(stream.as_str().into(), passive, FieldTable::default()).await;
        found.unwrap().consumer_count() == 0
    })
    .await;
    drop(deliveries);
    other.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}
