//! A waker that panics as it is called, as code of others may.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Counts how often it was woken, and panics then.
#[derive(Default)]
pub struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("at a waker");
    }
}

impl Alarm {
    /// How often it was woken.
    pub fn rings(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Polls a future, which is to wake this.
    pub fn poll<T>(self: &Arc<Self>, future: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
        future.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }
}
