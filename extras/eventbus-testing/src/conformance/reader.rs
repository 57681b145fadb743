//! A subscription at the broker itself, for what its contract says to a bus.

use eventbus_core::broker::{Deliveries, Received};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

/// What a bus is to a broker.
pub(super) struct Reader {
    deliveries: Box<dyn Deliveries>,
    received: VecDeque<Received>,
    patience: Duration,
}

impl Reader {
    pub(super) fn new(deliveries: Box<dyn Deliveries>, patience: Duration) -> Self {
        Self { deliveries, received: VecDeque::new(), patience }
    }

    /// The next delivery. The broker is asked for one, so that what it has not handed over stays there.
    pub(super) async fn next(&mut self) -> Received {
        match self.next_within(self.patience).await {
            Some(received) => received,
            None => panic!("nothing was delivered within {:?}", self.patience),
        }
    }

    /// The next delivery, if one comes within this time.
    pub(super) async fn next_within(&mut self, time: Duration) -> Option<Received> {
        let deadline = tokio::time::Instant::now() + time;
        while self.received.is_empty() {
            let mut more = Vec::new();
            let receive = poll_fn(|context| self.deliveries.poll_receive(context, &mut more, 1));
            match tokio::time::timeout_at(deadline, receive).await {
                Ok(Ok(())) => assert_eq!(
                    more.len(),
                    1,
                    "an open subscription ends, or hands over more than was asked for"
                ),
                // It connects again by itself.
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(_) => return None,
            }
            self.received.extend(more);
        }
        self.received.pop_front()
    }

    pub(super) async fn take(&mut self, count: usize) -> Vec<Received> {
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            taken.push(self.next().await);
        }
        taken
    }

    pub(super) fn close(self) -> usize {
        self.deliveries.close()
    }
}
