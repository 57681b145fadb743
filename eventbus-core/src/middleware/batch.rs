//! Layers around batch handlers: each member passes the layers by itself, and inside them all members meet.

use super::{HandlerLayer, HandlerService, service_of};
use crate::delivery::Delivery;
use crate::foreign::{self, Kept};
use crate::handler::{BatchHandler, BoxFuture, Handler};
use crate::lock::{Lock, Rank};
use crate::outcome::Outcome;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

/// The layers of one batch subscription.
pub(crate) struct BatchLayers {
    layers: Vec<Arc<dyn HandlerLayer>>,
    service: HandlerService,
    meeting: Arc<Meeting>,
}

impl Clone for BatchLayers {
    /// The same layers around a meeting of its own: members are known by their envelopes, and a replay may hold an
    /// envelope that is being handled live as well.
    fn clone(&self) -> Self {
        Self::new(&self.layers)
    }
}

impl BatchLayers {
    pub(crate) fn new(layers: &[Arc<dyn HandlerLayer>]) -> Self {
        let meeting = Arc::new(Meeting(Lock::new(Rank::LEAF, HashMap::new())));
        let innermost = service_of(Arc::clone(&meeting));
        let service = layers.iter().rev().fold(innermost, |inner, layer| layer.around(inner));
        Self { layers: layers.to_vec(), service, meeting }
    }

    /// Handles a batch: a member that a layer answers for by itself does not reach the handler.
    pub(crate) async fn call<H: BatchHandler>(&self, handler: &H, deliveries: &[Delivery]) -> Vec<Outcome> {
        let (arrive, mut arriving) = mpsc::unbounded_channel();
        let _expected = self.meeting.expect(deliveries, &arrive);
        let mut members: Vec<Member> = deliveries
            .iter()
            .map(|delivery| Member::Underway(Kept::new(self.service.deliver(delivery.clone()))))
            .collect();
        let mut arrived: Vec<Arrival> = Vec::new();
        poll_fn(|context| {
            let answered = members.iter_mut().filter_map(|member| member.poll(context)).count();
            while let Poll::Ready(Some(arrival)) = arriving.poll_recv(context) {
                arrived.push(arrival);
            }
            if answered + arrived.len() == deliveries.len() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        arrived.sort_by_key(|arrival| arrival.place);
        if !arrived.is_empty() {
            let (batch, answers): (Vec<_>, Vec<_>) =
                arrived.into_iter().map(|arrival| (arrival.delivery, arrival.answer)).unzip();
            for (answer, outcome) in answers.into_iter().zip(handler.call(&batch).await) {
                // A layer that has given up waiting has answered by itself.
                let _ = answer.send(outcome);
            }
        }
        poll_fn(|context| {
            let answered = members.iter_mut().filter_map(|member| member.poll(context)).count();
            if answered == deliveries.len() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        members.into_iter().map(Member::into_outcome).collect()
    }
}

/// A member's way through the layers.
enum Member {
    Underway(Kept<BoxFuture<Outcome>>),
    Answered(Outcome),
}

impl Member {
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Option<&Outcome> {
        // A layer that panics for one member is no matter of the others.
        if let Self::Underway(way) = self {
            let answered = match foreign::call("a layer", || way.as_mut().poll(context)) {
                Ok(Poll::Pending) => return None,
                Ok(Poll::Ready(outcome)) => way.discard("a layer").map(|()| outcome),
                Err(panicked) => Err(panicked),
            };
            *self = Self::Answered(answered.unwrap_or_else(|panicked| Outcome::Retry(panicked.into())));
        }
        match self {
            Self::Underway(_) => None,
            Self::Answered(outcome) => Some(outcome),
        }
    }

    fn into_outcome(self) -> Outcome {
        match self {
            Self::Answered(outcome) => outcome,
            Self::Underway(_) => unreachable!("the batch ends when every member has answered"),
        }
    }
}

/// A member that has passed the layers and waits for the handler.
struct Arrival {
    place: usize,
    delivery: Delivery,
    answer: oneshot::Sender<Outcome>,
}

/// Where members meet inside the layers. They are known by the address of their envelope, which the batch keeps.
struct Meeting(Lock<HashMap<usize, Place>>);

/// A member's place in its batch, and the way there.
type Place = (usize, mpsc::UnboundedSender<Arrival>);

impl Meeting {
    /// Expects the members of a batch until the answer is dropped.
    fn expect<'a>(
        &'a self,
        deliveries: &'a [Delivery],
        arrive: &mpsc::UnboundedSender<Arrival>,
    ) -> impl Drop {
        struct Expected<'a>(&'a Meeting, &'a [Delivery]);
        impl Drop for Expected<'_> {
            fn drop(&mut self) {
                let mut expected = self.0.0.lock();
                // The last sender of a channel wakes its receiver: it goes after the lock.
                let missing: Vec<_> =
                    self.1.iter().filter_map(|delivery| expected.remove(&address(delivery))).collect();
                drop(expected);
                drop(missing);
            }
        }

        let mut expected = self.0.lock();
        for (place, delivery) in deliveries.iter().enumerate() {
            expected.insert(address(delivery), (place, arrive.clone()));
        }
        Expected(self, deliveries)
    }
}

impl Handler for Meeting {
    async fn call(&self, delivery: &Delivery) -> Outcome {
        let expected = self.0.lock().remove(&address(delivery));
        let Some((place, arrive)) = expected else {
            return Outcome::Retry("a layer called the batch handler twice for one delivery".into());
        };
        let (answer, outcome) = oneshot::channel();
        let arrived = arrive.send(Arrival { place, delivery: delivery.clone(), answer });
        match (arrived, outcome.await) {
            (Ok(()), Ok(outcome)) => outcome,
            _ => Outcome::Retry("the batch ended without this member".into()),
        }
    }
}

fn address(delivery: &Delivery) -> usize {
    Arc::as_ptr(delivery.envelope()).addr()
}
