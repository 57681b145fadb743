//! Which stream the server has under the name of the events: told by the time of its making, and asked once for many
//! subscriptions.

use crate::connection::{Link, Nothing, Refusal};
use async_nats::datetime::{DateTime, parse_rfc3339};
use async_nats::jetstream::consumer::Info;
use eventbus_core::lock::{Lock, Rank};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// So long what was asked holds for a consumer that is new.
const LATELY: Duration = Duration::from_secs(10);

/// When a stream was made, as the server says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Birth {
    created: String,
}

/// What the server said of it last.
pub(crate) struct Births(Lock<Option<Known>>);

impl Default for Births {
    fn default() -> Self {
        Self(Lock::new(Rank::LEAF, None))
    }
}

struct Known {
    birth: Birth,
    /// When the server had that stream, by its own clock.
    at: Option<DateTime>,
    /// When that was asked.
    asked: Instant,
}

impl Known {
    /// Whether a consumer that the server has, made then, is one of this stream. One of a stream that was made later was
    /// made later as well. One that `is_new` was made here a moment ago: should the stream be another one since, the group
    /// begins anew once its consumer is lost, which repeats events and loses none.
    fn is_of(&self, made: DateTime, is_new: bool, now: Instant) -> bool {
        let is_older = self.at.is_some_and(|at| made <= at);
        is_older || (is_new && now.saturating_duration_since(self.asked) < LATELY)
    }
}

impl Link {
    /// What tells the stream of the events from an earlier one of its name.
    pub(crate) async fn birth(&self) -> Result<Birth, Refusal> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(flatten)]
            birth: Birth,
            ts: Option<String>,
        }

        let asked = Instant::now();
        let subject = format!("STREAM.INFO.{}", self.settings.stream);
        let Answer { birth, ts } = self.api(subject, &Nothing {}).await?;
        let at = ts.and_then(|ts| parse_rfc3339(&ts).ok());
        *self.births.0.lock() = Some(Known { birth: birth.clone(), at, asked });
        Ok(birth)
    }

    /// The same for a consumer, which `is_new` or was found. It is asked only where what is known does not tell.
    pub(crate) async fn birth_for(&self, info: &Info, is_new: bool) -> Result<Birth, Refusal> {
        let known = {
            let known = self.births.0.lock();
            let known = known.as_ref().filter(|known| known.is_of(info.created, is_new, Instant::now()));
            known.map(|known| known.birth.clone())
        };
        match known {
            Some(birth) => Ok(birth),
            None => self.birth().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::datetime::from_nanos;

    #[test]
    fn a_consumer_is_of_the_stream_that_was_there_after_it_was_made() {
        let (at, now) = (|nanos| from_nanos(nanos).unwrap(), Instant::now());
        let known =
            |at| Known { birth: Birth { created: "1970-01-01T00:00:00Z".to_owned() }, at, asked: now };
        assert!(known(Some(at(7))).is_of(at(6), false, now + 2 * LATELY));
        assert!(!known(Some(at(7))).is_of(at(8), false, now), "the stream may have been made anew since");
        assert!(!known(None).is_of(at(6), false, now), "the server does not say when that was");
        assert!(known(None).is_of(at(8), true, now + LATELY / 2));
        assert!(!known(None).is_of(at(8), true, now + LATELY));
    }
}
