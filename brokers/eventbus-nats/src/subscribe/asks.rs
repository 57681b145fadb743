//! Asking: for messages, where there is room for them, and to keep the group.

use super::{EXPIRES, Task};
use crate::topology::PRIORITY_GROUP;
use async_nats::StatusCode;
use std::time::{Duration, Instant};

/// How often it says meanwhile that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);

impl Task {
    /// Asks for messages where there is room for them.
    pub(super) async fn ask(&mut self) {
        if !self.subscription.is_known() || self.broken || !self.mends.is_empty() {
            return;
        }
        if self.rests.is_some_and(|until| Instant::now() < until) {
            return;
        }
        // Whose the group is shows only by a delivery.
        let needs_one = self.tenure.is_in_doubt() && self.pulls.coming() == 0;
        let (at_hand, held, bytes) = {
            let mut state = self.subscription.state.lock();
            (state.intake.at_hand(), state.intake.held(), state.intake.bytes())
        };
        let most = self.subscription.most_bytes();
        let is_full = bytes >= most && held > 0 && self.takeover.is_none();
        if is_full && !needs_one {
            return;
        }
        // Each ask may be answered with all that it lets come, and the next one is for what there is room for besides.
        let room_for = most.saturating_sub(bytes + self.pulls.bytes()) / 2;
        let least = self.largest();
        if room_for < least && self.pulls.coming() > 0 {
            return;
        }
        let (ahead, coming) = (self.ahead.get(), self.pulls.coming());
        // What another process had open is needed as a whole.
        let room = match &self.takeover {
            Some(takeover) => ahead.max(takeover.open.saturating_sub(held) + 1),
            None => ahead.saturating_sub(at_hand),
        };
        // Without a pin one ask has to do: others would wait while the first is served.
        let is_due = if self.subscription.competing || self.tenure.is_ours() {
            coming <= ahead / 2
        } else {
            coming == 0
        };
        let has_room = !is_full && room > coming && is_due && room - coming >= ahead / 4;
        if !has_room && !needs_one {
            return;
        }
        let count = if has_room { room - coming } else { 1 };
        let room_for = room_for.max(least);
        let number = self.pulls.ask(count, room_for, Instant::now());
        let pin = match (self.tenure.pin(), self.subscription.competing) {
            (_, true) => String::new(),
            (None, false) => format!(",\"group\":\"{PRIORITY_GROUP}\""),
            (Some(pin), false) => format!(",\"group\":\"{PRIORITY_GROUP}\",\"id\":\"{pin}\""),
        };
        let request = format!(
            "{{\"batch\":{count},\"max_bytes\":{room_for},\"expires\":{},\"idle_heartbeat\":{}{pin}}}",
            EXPIRES.as_nanos(),
            HEARTBEAT.as_nanos()
        );
        self.request(format!("p{number}"), request).await;
    }

    /// As much as any message has, so that there is room for it.
    pub(super) fn largest(&self) -> usize {
        2 * self.subscription.link.client().client.max_payload()
    }

    /// Asks the server to keep the group for this process: it answers at once, and gives no message, since none is as
    /// small as is asked for.
    pub(super) async fn keep(&mut self) {
        // The answer of another consumer says nothing.
        let Some(request) = self.keeping().filter(|_| self.subscription.is_known()) else { return };
        let number = self.last_keep() + 1;
        self.keeps.push_back((number, Instant::now()));
        if self.keeps.len() > 8 {
            self.keeps.pop_front();
        }
        self.request(format!("k{number}"), request).await;
    }

    pub(super) fn last_keep(&self) -> u64 {
        self.keeps.back().map_or(0, |(number, _)| *number)
    }

    fn keeping(&self) -> Option<String> {
        let pin = self.tenure.pin()?;
        Some(format!(
            "{{\"batch\":1,\"max_bytes\":1,\"no_wait\":true,\"group\":\"{PRIORITY_GROUP}\",\"id\":\"{pin}\"}}"
        ))
    }

    /// The same once no messages are taken any more.
    pub(super) async fn keep_meanwhile(&mut self) {
        let (link, now) = (&self.subscription.link, Instant::now());
        if self.subscription.competing {
            return self.subscription.is_sure_from(now);
        }
        let Some(request) = self.keeping() else { return };
        let name = format!("CONSUMER.MSG.NEXT.{}.{}", link.settings.stream, self.subscription.consumer);
        let request = async_nats::client::Request::new().payload(request.into());
        match link.client().client.send_request(link.api_subject(&name), request).await {
            // What a handler has may be settled by it still.
            Ok(answer) if answer.status == Some(StatusCode::PIN_ID_MISMATCH) => {
                self.tenure.lose();
                self.subscription.is_unsure();
            }
            Ok(_) if !self.subscription.lease_left().is_zero() => self.subscription.is_sure_from(now),
            _ => {}
        }
    }

    async fn request(&mut self, reply: String, request: String) {
        let link = &self.subscription.link;
        let name = format!("CONSUMER.MSG.NEXT.{}.{}", link.settings.stream, self.subscription.consumer);
        let reply = format!("{}.{reply}", self.inbox);
        let client = link.client();
        let asking = client.client.publish_with_reply(link.api_subject(&name), reply, request.into());
        // Where it cannot be sent there is another connection, or will be, and everything is asked for anew there.
        self.subscription.where_known(asking).await;
    }
}
