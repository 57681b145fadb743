//! The keeper of a claim: saves what was settled, keeps the lease, and leaves the group in the end.

use crate::claim::Claim;
use crate::entry;
use crate::script;
use crate::trouble::Trouble;
use eventbus_core::log;
use eventbus_core::printable::printable;
use redis::{Pipeline, Value};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So many settled deliveries are saved at once; fewer wait a moment for others.
pub(crate) const MANY: usize = 64;
const MOMENT: Duration = Duration::from_millis(1);
/// How long to wait with what the server has refused.
const LATER: Duration = Duration::from_secs(1);
/// The most deliveries that one script looks at.
const BEATS: usize = 500;

pub(crate) async fn keep(claim: Arc<Claim>) {
    let lease = claim.store.settings.lease;
    let mut due = Instant::now() + lease / 3;
    while !claim.is_over() {
        if claim.unsaved() == 0 {
            tokio::select! {
                () = claim.keeper.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
        if (1..MANY).contains(&claim.unsaved()) && !claim.is_ended() {
            tokio::select! {
                () = claim.keeper.notified() => {}
                () = tokio::time::sleep(MOMENT) => {}
            }
        }
        if let Err(trouble) = claim.save().await {
            wait_out(&claim, &trouble).await;
        }
        if Instant::now() >= due {
            due = Instant::now() + lease / 3;
            if let Err(trouble) = claim.renew().await {
                wait_out(&claim, &trouble).await;
                due = Instant::now();
            }
        }
    }
    claim.leave().await;
}

/// Waits until it may go better.
async fn wait_out(claim: &Claim, trouble: &Trouble) {
    if trouble.broken {
        // Whoever connects tells what is wrong.
        tokio::select! {
            _ = claim.store.link.wait() => {}
            () = tokio::time::sleep(LATER) => {}
        }
    } else {
        log::warn!(
            target: "eventbus", group = %printable(&claim.group), error = %printable(trouble),
            "the server does not take what was settled; trying again in {LATER:?}"
        );
        tokio::time::sleep(LATER).await;
    }
}

impl Claim {
    /// Has the deliveries for another while.
    async fn renew(self: &Arc<Self>) -> Result<(), Trouble> {
        if !self.is_ours() {
            // The reader takes the group over again.
            return Ok(());
        }
        let time = self.patience();
        let until = self.store.clock_after(time);
        let first = self.first_token();
        let kept = match self.competing {
            true => self.beat().await?,
            false => {
                let token = self.state().token.clone();
                let mut call = script::RENEW.call(&self.store.keys);
                call.arg(&self.group).arg(self.pattern.as_str()).arg(token).arg(millis(time));
                self.store.link.value_at_once("cannot renew a lease", &call).await? == Value::Int(1)
            }
        };
        if self.first_token() != first {
            return Ok(());
        }
        // Where processes compete, what others have is dropped already, and the rest is still here.
        let in_time = self.extend(until);
        if self.competing && in_time {
            let mut state = self.state();
            if kept { state.patience.kept() } else { state.patience.lost() }
        }
        if !(in_time && (kept || self.competing)) {
            log::warn!(
                target: "eventbus", group = %printable(&self.group), pattern = %printable(&self.pattern),
                "the lease on a group was lost; what is not settled is delivered again by whoever has it next"
            );
            self.lose();
        }
        Ok(())
    }

    /// How long others let this process be silent.
    pub(crate) fn patience(&self) -> Duration {
        if self.competing { self.state().patience.time() } else { self.store.settings.lease }
    }

    /// Says that this process is there, and has what it has. What others have by now is dropped; `false`: there was some.
    pub(crate) async fn beat(&self) -> Result<bool, Trouble> {
        let patience = self.patience();
        let held = self.held();
        let mut calls = Pipeline::new();
        {
            let state = self.state();
            let mut parts = held.chunks(BEATS);
            loop {
                let mut call = script::BEAT.call(&self.store.keys);
                call.arg(&self.group).arg(self.pattern.as_str()).arg(&self.consumer).arg(millis(patience));
                for (_, source, place) in parts.next().unwrap_or_default() {
                    call.arg(&state.sources[*source].key).arg(place.to_string());
                }
                calls.add_command(call);
                if parts.len() == 0 {
                    break;
                }
            }
        }
        let answers = self.store.link.values_at_once("cannot keep deliveries", &calls).await?;
        let mut lost = HashSet::new();
        for (part, answer) in held.chunks(BEATS).zip(answers) {
            for number in entry::list(answer) {
                if let Value::Int(number) = number
                    && let Some((token, ..)) =
                        usize::try_from(number).ok().and_then(|number| part.get(number))
                {
                    lost.insert(*token);
                }
            }
        }
        // What was settled meanwhile is not pending any more, and not lost.
        Ok(self.lose_some(&lost) == 0)
    }

    /// Leaves the group to whoever comes next.
    async fn leave(self: &Arc<Self>) {
        while let Err(trouble) = self.save().await {
            if !trouble.broken || self.store.link.is_closed() {
                log::warn!(
                    target: "eventbus", group = %printable(&self.group), error = %printable(&trouble),
                    "what was settled last is not saved; it is delivered again"
                );
                break;
            }
        }
        let call = {
            let state = self.state();
            let began = self.competing || !state.token.is_empty();
            began.then(|| {
                let mut call = script::LEAVE.call(&self.store.keys);
                call.arg(&self.group).arg(self.pattern.as_str()).arg(&state.token).arg(&self.consumer);
                state.sources.iter().for_each(|source| _ = call.arg(&source.key));
                call
            })
        };
        if let Some(call) = call
            // Without a connection, the lease runs out as soon as it would be back.
            && let Err(trouble) = self.store.link.value_at_once("cannot leave a group", &call).await
        {
            log::debug!(target: "eventbus", error = %printable(trouble), "a group was left without a word");
        }
        self.lose();
        self.store.remove(self);
        self.end_leaving();
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
