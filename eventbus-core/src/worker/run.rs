//! The loops that workers run: compiled for each handler, so they hold nothing that does not depend on it.

use super::attempt::attempt;
use super::lanes::{Lanes, Open};
use super::settle::{ack, settle};
use crate::handler::{BatchHandler, Handler};
use crate::outcome::Outcome;
use std::future::poll_fn;
use std::sync::Arc;

/// Handles one delivery after the other.
pub(super) async fn each<H: Handler>(handler: Arc<H>, lanes: Arc<Lanes>, slot: usize) {
    let pulse = lanes.pulse(slot);
    let mut last = None;
    while let Some(open) = poll_fn(|context| lanes.poll_next(context, slot, &mut last)).await {
        let delivery = open.delivery(&lanes.scope);
        let result = attempt(handler.call(&delivery), &delivery, &lanes, &pulse).await;
        last = Some(match result {
            // The usual answer, apart from the others so that less is moved for it.
            Ok(Outcome::Ack) => ack(&lanes, &delivery, open.acker).await,
            result => settle(&lanes, open, &delivery, result).await,
        });
    }
}

/// Handles one batch after the other. While one worker gathers a batch, the others handle theirs.
pub(super) async fn batches<H: BatchHandler>(handler: Arc<H>, lanes: Arc<Lanes>, slot: usize) {
    let pulse = lanes.pulse(slot);
    while let Some(batch) = gather(&lanes, slot).await {
        let mut members = Vec::with_capacity(batch.len());
        let mut deliveries = Vec::with_capacity(batch.len());
        for open in batch {
            let delivery = open.delivery(&lanes.scope);
            match handler.admit(&delivery) {
                Ok(()) => {
                    members.push(open);
                    deliveries.push(delivery);
                }
                Err(outcome) => lanes.settled(settle(&lanes, open, &delivery, Ok(outcome)).await),
            }
        }
        let Some(first) = deliveries.first() else { continue };
        let call = async {
            match &lanes.layered.batch_layers {
                None => handler.call(&deliveries).await,
                Some(layers) => layers.call(&*handler, &deliveries).await,
            }
        };
        let results = match attempt(call, first, &lanes, &pulse).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(broken) => vec![Err(broken); deliveries.len()],
        };
        for ((open, delivery), result) in members.into_iter().zip(&deliveries).zip(results) {
            lanes.settled(settle(&lanes, open, delivery, result).await);
        }
    }
}

/// Gathers a batch: complete, or as old as `linger` allows. `None`: stop.
async fn gather(lanes: &Arc<Lanes>, slot: usize) -> Option<Vec<Open>> {
    let size = lanes.policy.batch;
    lanes.arrive(slot);
    let mut batch = Vec::new();
    {
        let _turn = lanes.gathering.lock().await;
        if !poll_fn(|context| lanes.poll_gather(context, slot, &mut batch, size)).await {
            return None;
        }
        let oldest = batch.iter().filter_map(|open| open.since).min();
        let due = oldest.unwrap_or_else(tokio::time::Instant::now) + lanes.policy.linger;
        while batch.len() < size {
            let more = poll_fn(|context| lanes.poll_gather(context, slot, &mut batch, size));
            if !matches!(tokio::time::timeout_at(due, more).await, Ok(true)) {
                break;
            }
        }
    }
    lanes.call_successor(slot);
    Some(batch)
}
