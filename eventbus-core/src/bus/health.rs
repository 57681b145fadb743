//! The health of a bus: whether each subscription gets on, not only whether there is a connection.

use super::Bus;
use crate::broker::{Backlog, Connection, GroupState, Standing};
use crate::foreign;
use crate::log;
use crate::printable::printable;
use crate::subscription::Subscription;
use crate::worker::{Lanes, Life};
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a broker may take to say what its groups have yet to settle.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much longer than its time limit an attempt may take, and how long a backlog may wait for its first attempt, before
/// a subscription counts as stalled.
const GRACE: Duration = Duration::from_secs(10);

/// How a bus is at one moment; from [`Bus::health`].
///
/// It can be written as JSON: `serde_json::to_value(&health)`, or axum's `Json(health)`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The name of the broker.
    pub broker: String,
    /// Whether the broker can be reached.
    #[serde(serialize_with = "connection")]
    pub connection: Connection,
    /// Whether the bus was shut down.
    pub closed: bool,
    /// Each subscription, in the order of [`Bus::subscriptions`].
    pub subscriptions: Vec<SubscriptionHealth>,
}

/// How one subscription is.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SubscriptionHealth {
    /// Its group.
    pub group: String,
    /// The topics that it listens on.
    pub pattern: String,
    /// Whether it gets on.
    pub state: SubscriptionState,
    /// How many events it has yet to settle. None where it is not known: the broker cannot be reached, has not said it in
    /// time, or keeps no account of it, which all of ours do.
    pub backlog: Option<u64>,
    /// How many of them wait for their next attempt.
    pub parked: u64,
    /// How long ago the oldest of them was stored, where the broker can tell. In JSON in seconds.
    #[serde(serialize_with = "seconds", rename = "oldest_seconds")]
    pub oldest: Option<Duration>,
    /// When an attempt has last ended, with success or without; none yet in this process.
    #[serde(serialize_with = "text")]
    pub last_handled: Option<Timestamp>,
}

/// Whether a subscription gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SubscriptionState {
    /// The bus was not started, or was shut down.
    Stopped,
    /// The broker cannot be reached.
    Connecting,
    /// Another process handles the group.
    StandingBy,
    /// It has something to do, and does it.
    Progressing,
    /// It has nothing to do; retries may wait until they are due.
    Idle,
    /// It has something to do, and does not get on: a handler hangs beyond its time limit, or what is stored does not
    /// arrive.
    Stalled,
    /// It has nothing at hand, and the broker has not said whether something waits: it may be idle, and it may be stalled.
    ///
    /// A subscription whose last attempt ended within ten seconds gets on, and is [`Progressing`](Self::Progressing) then.
    Unknown,
}

impl fmt::Display for SubscriptionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Connecting => "connecting",
            Self::StandingBy => "standing-by",
            Self::Progressing => "progressing",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Unknown => "unknown",
        })
    }
}

impl Health {
    /// Whether the bus was not shut down, its broker can be reached, and every subscription gets on, has nothing to do, or
    /// stands by. What is [`Unknown`](SubscriptionState::Unknown) is not known to be well.
    ///
    /// A bus that has no subscriptions, since it only publishes, is healthy while its broker can be reached.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        use SubscriptionState::{Idle, Progressing, StandingBy};
        let well = |one: &SubscriptionHealth| matches!(one.state, Progressing | Idle | StandingBy);
        let reached = !matches!(self.connection, Connection::Lost { .. });
        !self.closed && reached && self.subscriptions.iter().all(well)
    }
}

impl Bus {
    /// How this bus is now: whether its broker can be reached, and whether each subscription gets on.
    ///
    /// For the health check of a service. A connection alone says little: a subscription may hang while it stands.
    ///
    /// As a readiness probe it is right as it stands. A liveness probe, whose failure restarts the program, asks for less:
    /// where the server is away or does not answer, the bus goes on by itself once it does, and a restart brings nothing
    /// back. Let that one fail where a subscription is [`Stalled`](SubscriptionState::Stalled) while the connection is
    /// [`Up`](Connection::Up).
    ///
    /// ```
    /// # async fn healthz(bus: eventbus::Bus) -> (u16, String) {
    /// let health = bus.health().await;
    /// let status = if health.is_healthy() { 200 } else { 503 };
    /// # let answer =
    /// (status, serde_json::to_string(&health).unwrap_or_default())
    /// # ; answer
    /// # }
    /// ```
    ///
    /// It answers within two seconds, also where the broker does not. What has to be asked of the broker is unknown then,
    /// and a warning of the log says why: the backlog is none, and a subscription with nothing at hand is
    /// [`Unknown`](SubscriptionState::Unknown).
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed.
    pub async fn health(&self) -> Health {
        let broker = &self.shared.broker;
        let connection = foreign::call("a broker", || broker.connection()).unwrap_or(Connection::Up);
        let (lanes, running, closed) = {
            let stage = self.shared.stage.lock();
            (stage.lanes.clone(), stage.running, stage.closed)
        };
        let answers = !matches!(connection, Connection::Lost { .. });
        let groups = if answers { self.known_groups(&lanes).await } else { None };
        let health = |lanes: &Arc<Lanes>| {
            let subscription = lanes.subscription();
            let seen = Seen {
                told: self.told(lanes, groups.as_deref()),
                running: running && !closed,
                connected: answers,
                standing: self.standing(lanes),
                limit: lanes.policy().timeout,
                life: lanes.life(),
            };
            seen.health(subscription, Timestamp::now())
        };
        let subscriptions = lanes.iter().map(health).collect();
        Health { broker: broker.name().to_owned(), connection, closed, subscriptions }
    }

    /// What the broker knows of groups, where it answers in time.
    async fn known_groups(&self, lanes: &[Arc<Lanes>]) -> Option<Vec<GroupState>> {
        let problem = match self.ask_groups(lanes).await {
            Ok(known) => return Some(known),
            Err(problem) => problem,
        };
        log::warn!(
            target: "eventbus", error = %printable(problem),
            "the broker did not say what its groups have yet to settle, so the health of the bus lacks it"
        );
        None
    }

    /// What the broker knows of the groups of these, nothing where it keeps none; or why it does not say.
    pub(super) async fn ask_groups(&self, lanes: &[Arc<Lanes>]) -> Result<Vec<GroupState>, String> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let Some(groups) = self.shared.broker.groups() else { return Ok(Vec::new()) };
        let requests = lanes.iter().filter_map(|lanes| lanes.subscription().request(lanes.policy()).ok());
        let requests: Vec<_> = requests.collect();
        let asked = foreign::run("a broker", || groups.list_of(&requests));
        match timeout(PATIENCE, asked).await {
            Ok(Ok(Ok(known))) => Ok(known),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(panicked)) => Err(panicked.to_string()),
            Err(_) => Err(format!("it took longer than {PATIENCE:?}")),
        }
    }

    /// What the broker says of the backlog of one subscription; of `groups` it has said something where there are some.
    fn told<'a>(&self, lanes: &Lanes, groups: Option<&'a [GroupState]>) -> Told<'a> {
        let broker = &self.shared.broker;
        if let Some(known) = groups.and_then(|groups| known_of(lanes.subscription(), groups)) {
            let counts = broker.features().backlog != Backlog::Unknown;
            return if counts { Told::Group(known) } else { Told::NoAccount };
        }
        let request = lanes.subscription().request(lanes.policy()).ok();
        let asked =
            request.and_then(|request| foreign::call("a broker", || broker.backlog(&request)).ok()).flatten();
        match asked {
            Some(queued) => Told::Queue(queued),
            None if broker.groups().is_some() => Told::Nothing,
            None => Told::NoAccount,
        }
    }

    pub(super) fn standing(&self, lanes: &Lanes) -> Standing {
        let request = lanes.subscription().request(lanes.policy());
        let asked = request
            .ok()
            .and_then(|request| foreign::call("a broker", || self.shared.broker.standing(&request)).ok());
        asked.unwrap_or(Standing::Active)
    }
}

/// What the broker knows of a subscription.
pub(super) fn known_of<'a>(subscription: &Subscription, groups: &'a [GroupState]) -> Option<&'a GroupState> {
    groups.iter().find(|one| one.group == subscription.group && one.pattern == subscription.pattern)
}

/// What a broker says of the backlog of a subscription.
#[derive(Clone, Copy)]
enum Told<'a> {
    /// What it knows of the group.
    Group(&'a GroupState),
    /// What is unsettled at a broker without groups. It comes by itself as soon as there is room here, so that it says
    /// nothing of whether the subscription gets on.
    Queue(u64),
    /// It keeps no account of what waits.
    NoAccount,
    /// It was asked, and has not said.
    Nothing,
}

/// What is seen of one subscription.
struct Seen<'a> {
    told: Told<'a>,
    running: bool,
    connected: bool,
    standing: Standing,
    /// How long one attempt may take.
    limit: Duration,
    life: Life,
}

impl Seen<'_> {
    fn health(&self, subscription: &Subscription, now: Timestamp) -> SubscriptionHealth {
        let life = &self.life;
        let held = (life.at_hand + life.held_back) as u64;
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        let (known, backlog, work) = match self.told {
            Told::Group(known) => (Some(known), Some(known.backlog.max(held)), Some(known.backlog.max(held))),
            Told::Queue(queued) => (None, Some(queued.max(held)), Some(held)),
            Told::NoAccount => (None, None, Some(held)),
            Told::Nothing => (None, None, None),
        };
        let parked = known.map_or(0, |known| known.parked).max(life.parked as u64);
        let oldest = known.and_then(|known| known.oldest).map(age);
        let handled_ago = life.last_ended.and_then(|ago| SignedDuration::try_from(ago).ok());
        SubscriptionHealth {
            group: subscription.group.to_string(),
            pattern: subscription.pattern.to_string(),
            state: self.state(work, parked, oldest),
            backlog,
            parked,
            oldest,
            last_handled: handled_ago.and_then(|ago| now.checked_sub(ago).ok()),
        }
    }

    /// The state of one that has so much `work` here and at the broker, where that is known.
    fn state(&self, work: Option<u64>, parked: u64, oldest: Option<Duration>) -> SubscriptionState {
        let Self { life, limit, .. } = self;
        if !self.running {
            return SubscriptionState::Stopped;
        }
        if !self.connected {
            return SubscriptionState::Connecting;
        }
        if self.standing == Standing::StandingBy {
            return SubscriptionState::StandingBy;
        }
        if life.at_hand > 0 {
            let hangs = life.stuck > limit.saturating_add(GRACE);
            return if hangs { SubscriptionState::Stalled } else { SubscriptionState::Progressing };
        }
        let Some(work) = work else {
            let gets_on = life.last_ended.is_some_and(|ago| ago <= GRACE);
            return if gets_on { SubscriptionState::Progressing } else { SubscriptionState::Unknown };
        };
        if work <= parked {
            return SubscriptionState::Idle;
        }
        // There is something at the broker, and nothing here.
        let waits = [oldest, life.last_ended].into_iter().flatten().min().unwrap_or_default();
        if waits > GRACE { SubscriptionState::Stalled } else { SubscriptionState::Progressing }
    }
}

fn connection<S: Serializer>(connection: &Connection, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(tag = "state", rename_all = "kebab-case")]
    enum Written<'a> {
        Up,
        Lost { since: String, error: &'a str },
        Slowed { since: String, error: &'a str },
    }
    let written = match connection {
        Connection::Up => Written::Up,
        Connection::Lost { since, error } => Written::Lost { since: since.to_string(), error },
        Connection::Slowed { since, error } => Written::Slowed { since: since.to_string(), error },
    };
    written.serialize(serializer)
}

fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

fn text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(at_hand: usize, held_back: usize, parked: usize) -> Seen<'static> {
        let life = Life { at_hand, held_back, parked, last_ended: None, stuck: Duration::ZERO };
        Seen {
            told: Told::NoAccount,
            running: true,
            connected: true,
            standing: Standing::Active,
            limit: 60 * SECOND,
            life,
        }
    }

    #[test]
    fn a_subscription_gets_on_while_attempts_end_within_their_limit() {
        let mut seen = seen(1, 0, 0);
        seen.life.stuck = 65 * SECOND;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::Progressing);
        seen.life.stuck = 71 * SECOND;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::Stalled);
        seen.limit = Duration::MAX;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::Progressing);
    }

    #[test]
    fn retries_that_wait_are_no_work_and_what_does_not_arrive_is_a_stall() {
        assert_eq!(seen(0, 3, 3).state(Some(3), 3, Some(900 * SECOND)), SubscriptionState::Idle);
        assert_eq!(seen(0, 0, 0).state(Some(0), 0, None), SubscriptionState::Idle);
        let mut stuck = seen(0, 0, 0);
        assert_eq!(
            stuck.state(Some(1), 0, Some(SECOND)),
            SubscriptionState::Progressing,
            "it is about to come"
        );
        assert_eq!(stuck.state(Some(1), 0, Some(11 * SECOND)), SubscriptionState::Stalled);
        stuck.life.last_ended = Some(SECOND);
        assert_eq!(
            stuck.state(Some(1), 0, Some(11 * SECOND)),
            SubscriptionState::Progressing,
            "it works its way through"
        );
    }

    #[test]
    fn what_the_broker_does_not_say_is_unknown_unless_an_attempt_has_just_ended() {
        let mut quiet = seen(0, 0, 0);
        assert_eq!(quiet.state(None, 0, None), SubscriptionState::Unknown);
        quiet.life.last_ended = Some(11 * SECOND);
        assert_eq!(quiet.state(None, 0, None), SubscriptionState::Unknown, "a stall may hide behind it");
        quiet.life.last_ended = Some(10 * SECOND);
        assert_eq!(quiet.state(None, 0, None), SubscriptionState::Progressing);
        let at_work = seen(1, 0, 0);
        assert_eq!(at_work.state(None, 0, None), SubscriptionState::Progressing);
    }

    #[test]
    fn what_keeps_a_subscription_from_work_is_told_first() {
        let mut seen = seen(1, 0, 0);
        seen.life.stuck = 100 * SECOND;
        seen.standing = Standing::StandingBy;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::StandingBy);
        seen.connected = false;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::Connecting);
        seen.running = false;
        assert_eq!(seen.state(Some(1), 0, None), SubscriptionState::Stopped);
    }
}
