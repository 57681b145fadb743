//! What survives a restart, and what a crash may repeat.

mod support;

use support::{Log, Ping, pings, settled, until};

#[tokio::test]
async fn events_of_others_neither_hold_up_a_group_nor_what_it_settles() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    bus.publish_to("noise.made", &()).await.unwrap();
    // The group is moved on behind the noise, a quarter of a second later.
    until("the group moves on", async || {
        bus.groups().unwrap().list().await.unwrap()[0].cursor.is_some_and(|cursor| cursor.get() == 1)
    })
    .await;
    settled(&bus).await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [1]);
}
