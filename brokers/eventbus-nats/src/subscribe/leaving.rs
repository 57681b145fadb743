//! The end: what no handler has goes back to the server, and what one has is waited for.

use super::{Looked, Task};
use crate::subscription::{NAK, Stale};
use crate::topology::PRIORITY_GROUP;
use crate::wire::Place;
use async_nats::Subscriber;
use async_nats::jetstream::ErrorCode;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::de::IgnoredAny;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// How long what is settled last is waited for at the end.
const LAST_ACKS: Duration = Duration::from_secs(2);

impl Task {
    /// Nobody reads any more: what is not with a handler goes back to the server, and what is, is waited for.
    pub(super) async fn leave(
        &mut self,
        messages: Option<Subscriber>,
        notes: &mut UnboundedReceiver<Stale>,
        mut tick: tokio::time::Interval,
    ) {
        let subscription = Arc::clone(&self.subscription);
        // What the server has sent before it knows that nobody asks any more.
        let rest = async {
            let Some(mut messages) = messages else { return };
            let _ = messages.drain().await;
            while let Some(message) = messages.next().await {
                let Some(reply) = &message.reply else { continue };
                let Some(place) = Place::read(reply) else { continue };
                if !subscription.state.lock().intake.holds(place.sequence) {
                    subscription.tell(reply.clone(), NAK).await;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
        self.lookups.clear();
        let gone = subscription.state.lock().intake.let_go();
        for (reply, waiting) in gone {
            subscription.tell(reply, NAK).await;
            drop(waiting);
        }
        let mut forgotten = FuturesUnordered::new();
        loop {
            let (handed_out, ends) = {
                let state = subscription.state.lock();
                (state.intake.handed_out(), state.ends())
            };
            if handed_out == 0 || ends {
                break;
            }
            tokio::select! {
                _ = subscription.bell.notified() => self.send_acks().await,
                Some(stale) = notes.recv() => forgotten.push(subscription.forget(stale)),
                Some(()) = forgotten.next(), if !forgotten.is_empty() => {}
                another = subscription.link.state.another(self.connection) => {
                    self.connection = another;
                    self.looks.clear();
                    self.look();
                }
                Some(looked) = self.looks.next(), if !self.looks.is_empty() => self.looked_at_the_end(looked).await,
                _ = tick.tick() => {
                    if !subscription.is_known() {
                        self.look();
                    } else {
                        self.keep_meanwhile().await;
                        self.beat(self.lease() / 3).await;
                    }
                }
            }
        }
        while let Ok(stale) = notes.try_recv() {
            forgotten.push(subscription.forget(stale));
        }
        let forgotten = async { while forgotten.next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ACKS, async { tokio::join!(self.last_acks(), forgotten) }).await;
        if self.tenure.is_ours() && subscription.is_known() {
            let stream = &subscription.link.settings.stream;
            let subject = format!("CONSUMER.UNPIN.{stream}.{}", subscription.consumer);
            let group = serde_json::json!({ "group": PRIORITY_GROUP });
            let unpin = subscription.link.api::<IgnoredAny>(subject, &group);
            let _ = tokio::time::timeout(Duration::from_secs(1), unpin).await;
        }
    }

    /// Nobody reads any more. Where the server has another stream or consumer by now, what handlers have cannot be settled
    /// there.
    pub(super) async fn looked_at_the_end(&mut self, looked: Looked) {
        match looked {
            Looked::State(_, Ok(info)) if info.created == self.made => {
                if !self.subscription.is_known() {
                    self.subscription.knows(self.connection);
                    self.subscription.state.lock().intake.doubt_acks();
                    self.send_acks().await;
                    self.beat(Duration::ZERO).await;
                }
            }
            Looked::Made(Ok(found)) => self.go_on(found),
            Looked::State(_, Ok(_)) => self.begin_anew(),
            Looked::State(_, Err(refusal))
                if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) || refusal.is(ErrorCode::STREAM_NOT_FOUND) =>
            {
                self.begin_anew();
            }
            // It is asked again a little later.
            Looked::State(_, Err(_)) | Looked::Made(Err(_)) => {}
        }
    }
}
