//! Processes that handle a group at once: what becomes of what one of them has as it leaves. Names are promises.

mod support;

use eventbus::broker::{Broker, Deliveries, Received};
use eventbus_rabbitmq::RabbitMqBroker;
use support::{
    ack, behind_proxy, builder, connect, event, exchange, number, receive, remove, request, server, until,
    url_at,
};

/// Subscribes a group that several processes handle at once.
async fn compete(broker: &RabbitMqBroker) -> Box<dyn Deliveries> {
    let mut request = request("mail", "a.b");
    request.competing = true;
    broker.subscribe(request).await.unwrap()
}

async fn publish(broker: &RabbitMqBroker, numbers: std::ops::Range<u64>) {
    for number in numbers {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
}

/// Receives so many deliveries, and acks them. Their numbers, sorted.
async fn handle(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for one in receive(deliveries, count).await {
        numbers.push(number(&one));
        ack(one).await;
    }
    numbers.sort_unstable();
    numbers
}

/// What was acked is not there any more: another event is all that comes.
async fn is_all_that_comes(broker: &RabbitMqBroker, deliveries: &mut Box<dyn Deliveries>, last: u64) {
    publish(broker, last..last + 1).await;
    assert_eq!(handle(deliveries, 1).await, [last]);
    broker.settled().unwrap().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_has_as_its_reader_leaves_is_settled_and_the_rest_goes_to_others_at_once() {
    let exchange = exchange();
    let (leaving, staying) =
        (builder(&exchange).connect().await.unwrap(), builder(&exchange).connect().await.unwrap());
    let mut first = compete(&leaving).await;
    publish(&leaving, 0..20).await;
    let mut held = receive(&mut first, 3).await;
    assert_eq!(held.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
    drop(first);
    let mut second = compete(&staying).await;
    assert_eq!(handle(&mut second, 17).await, (3..20).collect::<Vec<_>>());
    // What is given back later goes as well, while a handler has the others.
    let Received { receipt, settler, .. } = held.remove(1);
    settler.release(receipt);
    assert_eq!(handle(&mut second, 1).await, [1]);
    for one in held {
        assert!(one.settler.holds(&one.receipt), "{}", number(&one));
        ack(one).await;
    }
    leaving.close().await.unwrap();
    is_all_that_comes(&staying, &mut second, 20).await;
    staying.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_sends_a_reader_that_leaves_goes_to_others_while_its_handlers_are_at_work() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let leaving = connect(&format!("{}&heartbeat=60s", url_at(&url, &exchange))).await;
    let staying = builder(&exchange).connect().await.unwrap();
    let mut first = compete(&leaving).await;
    publish(&staying, 0..1).await;
    let held = receive(&mut first, 1).await.remove(0);
    // They are on their way to the reader as it leaves.
    proxy.mute(true);
    publish(&staying, 1..40).await;
    until("something is on its way", async || proxy.has_kept()).await;
    drop(first);
    let mut second = compete(&staying).await;
    proxy.mute(false);
    assert_eq!(handle(&mut second, 39).await, (1..40).collect::<Vec<_>>());
    assert!(held.settler.holds(&held.receipt));
    ack(held).await;
    leaving.close().await.unwrap();
    is_all_that_comes(&staying, &mut second, 40).await;
    staying.close().await.unwrap();
    remove(&exchange).await;
}
