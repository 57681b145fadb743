//! A limit to the pace of a replay, put around its deliveries.

use crate::broker::{Deliveries, Received};
use crate::error::BrokerError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
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
    pub(super) fn new(per_second: u32) -> Arc<Mutex<Self>> {
        let per_second = f64::from(per_second.max(1));
        // A tenth of a second's worth: timers and brokers work in steps, and the average is to be kept over them.
        let size = (per_second / 10.0).max(1.0);
        Arc::new(Mutex::new(Self { per_second, size, tokens: 1.0, filled: Instant::now() }))
    }

    /// How many events may be delivered now, or when the next one may.
    fn available(&mut self) -> Result<usize, Instant> {
        let now = Instant::now();
        let dripped = now.duration_since(self.filled).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + dripped).min(self.size);
        self.filled = now;
        if self.tokens >= 1.0 {
            Ok(self.tokens as usize)
        } else {
            // Rounded up to what timers can tell apart, or the next look would come too early.
            let missing = (1.0 - self.tokens) / self.per_second * 1e3;
            Err(now + Duration::from_millis(missing.ceil() as u64))
        }
    }
}

/// Deliveries that come no faster than a bucket fills.
pub(super) struct Paced {
    source: Box<dyn Deliveries>,
    bucket: Arc<Mutex<Bucket>>,
    next: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) fn new(source: Box<dyn Deliveries>, bucket: Arc<Mutex<Bucket>>) -> Self {
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
        let Self { source, bucket, next } = self;
        let (mut bucket, allowed) = loop {
            if let Some(wait) = next {
                std::task::ready!(wait.as_mut().poll(context));
                *next = None;
            }
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            match bucket.available() {
                Ok(allowed) => break (bucket, allowed),
                Err(when) => *next = Some(Box::pin(sleep_until(when))),
            }
        };
        let before = into.len();
        let polled = source.poll_receive(context, into, limit.min(allowed));
        bucket.tokens -= (into.len() - before) as f64;
        polled
    }
}
