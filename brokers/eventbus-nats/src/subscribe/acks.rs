//! What the server is told: what is settled, and what is worked on.

use super::{Task, UNANSWERED};
use crate::subscription::{ACK, WORKING};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

impl Task {
    /// Sends acks for which there was no room, or which may be lost.
    pub(super) async fn send_acks(&mut self) {
        if !self.subscription.is_known() {
            return;
        }
        let unsent = self.subscription.state.lock().intake.unsent_acks();
        for reply in unsent {
            if !self.subscription.tell(reply, ACK).await {
                return self.subscription.state.lock().intake.doubt_acks();
            }
        }
    }

    /// Tells the server what is worked on.
    pub(super) async fn beat(&mut self, age: Duration) {
        if !self.subscription.is_known() {
            return;
        }
        let due = self.subscription.state.lock().intake.beats(age, Instant::now());
        for reply in due {
            self.subscription.tell(reply, WORKING).await;
        }
    }

    /// Asks the server to confirm the latest ack: then it has all before it.
    pub(super) async fn confirm_acks(&mut self, now: Instant) {
        let waits = self
            .barrier
            .is_some_and(|(_, since)| now.saturating_duration_since(since) < Duration::from_secs(2));
        if waits || !self.subscription.is_known() {
            return;
        }
        let last = self.subscription.state.lock().intake.last_ack();
        if let Some((number, reply)) = last {
            self.barrier = Some((number, now));
            let answer = format!("{}.a{number}", self.inbox);
            let client = self.subscription.link.client();
            self.subscription.where_known(client.client.publish_with_reply(reply, answer, ACK)).await;
        }
    }

    /// Waits until the server has every ack.
    pub(super) async fn last_acks(&mut self) {
        while !self.subscription.is_known() {
            if self.subscription.state.lock().intake.unconfirmed() == 0 {
                return;
            }
            self.connection = self.subscription.link.state.another(0).await;
            self.look();
            if let Some(looked) = self.looks.next().await {
                self.looked_at_the_end(looked).await;
            }
            if !self.subscription.is_known() {
                tokio::time::sleep(UNANSWERED / 2).await;
            }
        }
        self.send_acks().await;
        let last = self.subscription.state.lock().intake.last_ack();
        let Some((number, reply)) = last else { return };
        let request = async_nats::client::Request::new().payload(ACK);
        let client = self.subscription.link.client();
        let mut confirmed = false;
        let asking = async {
            let answer = client.client.send_request(reply, request).await;
            confirmed = answer.is_ok();
            answer.map(drop)
        };
        self.subscription.where_known(asking).await;
        if confirmed {
            self.subscription.state.lock().intake.confirm_acks(number);
        }
    }
}
