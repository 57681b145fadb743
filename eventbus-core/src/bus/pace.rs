//! A limit to the pace of a replay, put around its deliveries.

use crate::broker::{Deliveries, Received};
use crate::error::BrokerError;
use crate::lock::{Lock, Rank};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Instant, Sleep, sleep_until};

/// How many events may be delivered by now: a bucket into which tokens drip.
pub(super) struct Bucket {
    per_second: f64,
    /// What drips in while nobody takes anything is kept up to this, so that a pause is not made up for.
    size: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A bucket that several deliveries take from.
    pub(super) fn new(per_second: u32) -> Arc<Lock<Self>> {
        let per_second = f64::from(per_second.max(1));
        // A tenth of a second's worth: timers and brokers work in steps, and the average is to be kept over them.
        let size = (per_second / 10.0).max(1.0);
        Arc::new(Lock::new(Rank::PACE, Self { per_second, size, tokens: 1.0, filled: Instant::now() }))
    }

    /// Takes tokens for as many events as may be delivered now, up to `limit`; or says when the next one may.
    fn take(&mut self, limit: usize) -> Result<usize, Instant> {
        let now = Instant::now();
        let dripped = now.duration_since(self.filled).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + dripped).min(self.size);
        self.filled = now;
        if self.tokens >= 1.0 {
            let taken = limit.min(self.tokens as usize);
            self.tokens -= taken as f64;
            Ok(taken)
        } else {
            // Rounded up to what timers can tell apart, or the next look would come too early.
            let missing = (1.0 - self.tokens) / self.per_second * 1e3;
            Err(now + Duration::from_millis(missing.ceil() as u64))
        }
    }

    /// Takes back tokens for which there were no events.
    fn put_back(&mut self, tokens: usize) {
        self.tokens += tokens as f64;
    }
}

/// Deliveries that come no faster than a bucket fills.
pub(super) struct Paced {
    source: Box<dyn Deliveries>,
    bucket: Arc<Lock<Bucket>>,
    /// Whoever polls this may have spent its budget, and a timer that minds it would wake the reader from inside of
    /// the poll.
    next: Option<Unconstrained<Pin<Box<Sleep>>>>,
}

impl Paced {
    pub(super) fn new(source: Box<dyn Deliveries>, bucket: Arc<Lock<Bucket>>) -> Self {
        Self { source, bucket, next: None }
    }
}

impl Deliveries for Paced {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let allowed = loop {
            if let Some(wait) = &mut self.next {
                std::task::ready!(Pin::new(wait).poll(context));
                self.next = None;
            }
            let taken = self.bucket.lock().take(limit);
            match taken {
                Ok(taken) => break taken,
                Err(when) => self.next = Some(unconstrained(Box::pin(sleep_until(when)))),
            }
        };
        let before = into.len();
        // The bucket is not locked meanwhile: the source is a broker's.
        let polled = self.source.poll_receive(context, into, allowed);
        self.bucket.lock().put_back(allowed - (into.len() - before));
        polled
    }

    fn close(self: Box<Self>) -> usize {
        self.source.close()
    }
}
