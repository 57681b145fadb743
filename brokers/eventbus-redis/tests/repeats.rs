//! What is asked of the server once more since its answer was lost with the connection. Names are promises.

mod support;

use eventbus::broker::{Broker, DeadLetterId};
use eventbus_redis::RedisBroker;
use support::proxy::Proxy;
use support::{PATIENCE, Place, ack, dead_letter, event, number, publish, receive_all, subscribe, until};

/// A place with a group that has a dead letter and nobody who handles it, a broker there, and one whose connection is cut.
struct Cut {
    place: Place,
    direct: RedisBroker,
    proxy: Proxy,
    through: RedisBroker,
    letter: DeadLetterId,
}

impl Cut {
    async fn prepare() -> Self {
        let place = Place::new();
        let direct = place.broker().await;
        let mut deliveries = subscribe(&direct, "group", "order.*").await;
        publish(&direct, event("order.placed", 1)).await;
        publish(&direct, event("order.placed", 2)).await;
        let received = receive_all(&mut deliveries, 2).await;
        for received in received {
            if number(&received) == 1 {
                let letter = dead_letter(&received);
                received.settler.reject(received.receipt, letter).await.unwrap();
            } else {
                ack(received).await;
            }
        }
        drop(deliveries);
        let groups = direct.groups().unwrap();
        until("the group was left", async || {
            groups.list().await.unwrap().iter().all(|group| !group.active && group.backlog == 0)
        })
        .await;
        let letter = direct.dead_letters().unwrap().list().await.unwrap().remove(0).0;
        let proxy = Proxy::to(&place.url).await;
        let builder = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix);
        let through = builder.response_timeout(PATIENCE).open().await.unwrap();
        Self { place, direct, proxy, through, letter }
    }

    /// Asks for something, by a script that begins with these words; cuts the connection once that `is_done` and before it
    /// is answered. What is answered in the end.
    async fn cut<T: Send + 'static>(
        &self,
        script: &'static str,
        asking: impl Future<Output = T> + Send + 'static,
        is_done: impl AsyncFnMut() -> bool,
    ) -> T {
        self.proxy.mute_at(script);
        let asking = tokio::spawn(asking);
        until("the server has done it", is_done).await;
        assert!(!asking.is_finished(), "its answer is on its way");
        self.proxy.cut();
        self.proxy.mute(false);
        tokio::time::timeout(PATIENCE, asking).await.expect("it is answered").unwrap()
    }

    fn length(&self, key: &str) -> u64 {
        self.place.command(redis::cmd("XLEN").arg(self.place.key(key)))
    }

    async fn names(&self) -> Vec<String> {
        let groups = self.direct.groups().unwrap().list().await.unwrap();
        groups.into_iter().map(|group| group.group).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_answer_is_lost_is_published_again_once_and_the_answer_says_so() {
    for payload in [None, Some("7".into())] {
        let cut = Cut::prepare().await;
        let asking = cut.through.dead_letters().unwrap().republish(&cut.letter, payload);
        let is_done = async || cut.length("dead:group") == 0;
        let done = cut.cut("-- Delivers a dead letter again", asking, is_done).await;
        assert!(done.unwrap(), "it was published again");
        assert_eq!(cut.length("again:group:order.placed"), 1, "once");
        // Another call is another one.
        let letters = cut.through.dead_letters().unwrap();
        assert!(!letters.republish(&cut.letter, None).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_answer_is_lost_is_renamed_once_and_the_answer_says_so() {
    let cut = Cut::prepare().await;
    let asking = cut.through.groups().unwrap().rename("group", "other");
    let is_done = async || cut.names().await == ["other"];
    let done = cut.cut("-- Moves, renames or removes a group", asking, is_done).await;
    assert!(done.unwrap(), "it was renamed");
    assert_eq!((cut.names().await, cut.length("dead:other")), (vec!["other".to_owned()], 1));
    assert!(!cut.through.groups().unwrap().rename("group", "other").await.unwrap(), "it is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_while_the_answer_is_lost_is_said_to_be_removed() {
    let cut = Cut::prepare().await;
    let asking = cut.through.groups().unwrap().remove("group");
    let is_done = async || cut.names().await.is_empty();
    assert!(cut.cut("-- Moves, renames or removes a group", asking, is_done).await.unwrap());
    let asking = cut.through.dead_letters().unwrap().purge(&cut.letter);
    let is_done = async || cut.length("dead:group") == 0;
    assert!(cut.cut("-- Removes a dead letter", asking, is_done).await.unwrap());
    assert!(!cut.through.dead_letters().unwrap().purge(&cut.letter).await.unwrap(), "it is gone");
}
