//! Subscriptions that are made at run time.

use super::Bus;
use super::sharing::Sharing;
use super::stage::Opening;
use crate::census;
use crate::delivery::Delivery;
use crate::error::{Result, StartupError};
use crate::event::Event;
use crate::handler::{BoxFuture, Handler, OnDelivery, OnEvent};
use crate::outcome::IntoOutcome;
use crate::registry::Subscriber;
use crate::subscription::{Options, Subscription, with_options};
use crate::topic::Pattern;
use crate::worker::{Lanes, Worker};
use std::fmt;
use std::future::{Future, IntoFuture};
use std::panic::Location;
use std::sync::Arc;

impl Bus {
    /// Subscribes a closure to an event type. It obeys the same rules as `#[subscribe]`, and begins once this is
    /// awaited.
    ///
    /// Its group is made of the source line, unless `group` names one. A durable broker keeps how far each group has
    /// come, so there it has to be named: lines move.
    ///
    /// ```
    /// # use eventbus::{Bus, Event};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { id: u64 }
    /// # async fn watch(bus: Bus) -> eventbus::Result<()> {
    /// let watching = bus.on(|order: std::sync::Arc<OrderPlaced>| async move { println!("{order:?}") }).await?;
    /// // … and when nobody watches any more:
    /// watching.stop().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It is called again before an earlier call has ended, so each call's future owns what it uses: the closure keeps
    /// a value and gives each future a clone of it. An `async move |order| …` would lend it, which does not compile.
    ///
    /// ```
    /// # use eventbus::{Bus, Event};
    /// # use serde::{Deserialize, Serialize};
    /// # use std::sync::Arc;
    /// # use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { total: u64 }
    /// # async fn store(_: &OrderPlaced) {}
    /// # async fn count(bus: Bus, sum: Arc<AtomicU64>) -> eventbus::Result<()> {
    /// bus.on(move |order: Arc<OrderPlaced>| {
    ///     let sum = sum.clone();
    ///     async move {
    ///         store(&order).await;
    ///         sum.fetch_add(order.total, Relaxed);
    ///     }
    /// })
    /// .await?;
    /// # Ok(())
    /// # }
    /// # #[eventbus::main]
    /// # async fn main() {
    /// #     let (bus, sum) = (Bus::builder().without_subscriptions().connect("memory:").await.unwrap(), Arc::default());
    /// #     count(bus.clone(), Arc::clone(&sum)).await.unwrap();
    /// #     bus.start().unwrap();
    /// #     bus.publish(OrderPlaced { total: 7 }).await.unwrap();
    /// #     bus.settled().await.unwrap();
    /// #     assert_eq!(sum.load(Relaxed), 7);
    /// # }
    /// ```
    ///
    /// # Errors
    /// Awaited, as [`Bus::connect`], for this one subscription, and where the broker is durable and no group is named.
    #[track_caller]
    pub fn on<E, R>(&self, handler: impl Fn(Arc<E>) -> R + Send + Sync + 'static) -> On
    where
        E: Event,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        let mut on = On::new(self, E::META.topic, OnEvent::<E, _>::new(handler), Location::caller());
        on.subscriber.subscription.event = Some(E::META);
        on.subscriber.subscription.publishes = <R::Output as IntoOutcome>::PUBLISHES;
        on
    }

    /// Subscribes a closure to a pattern, whatever the events on it are.
    ///
    /// ```
    /// # async fn watch(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// bus.on_topic("order.>", |delivery| async move { println!("{}", delivery.envelope().topic()) }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Awaited, where the pattern is not well-formed, and as [`Bus::on`].
    #[track_caller]
    pub fn on_topic<R>(
        &self,
        pattern: impl AsRef<str>,
        handler: impl Fn(Delivery) -> R + Send + Sync + 'static,
    ) -> On
    where
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        On::new(self, pattern.as_ref(), OnDelivery::new(handler), Location::caller())
    }
}

/// A subscription that is about to begin: set its options, then `.await` it.
///
/// # Cancel safety
/// Dropped before it is done, there is no subscription, and its group is free again.
#[must_use = "nothing is subscribed until you `.await` this"]
pub struct On {
    bus: Bus,
    /// Whether somebody named the group.
    named: bool,
    subscriber: Subscriber,
}

impl On {
    fn new(bus: &Bus, pattern: &str, handler: impl Handler, place: &'static Location<'static>) -> Self {
        let file = place.file().replace(|other: char| !other.is_ascii_alphanumeric(), "-");
        Self {
            bus: bus.clone(),
            named: false,
            subscriber: Subscriber {
                subscription: Subscription {
                    name: "closure".into(),
                    group: format!("on.{file}-{}", place.line()).into(),
                    pattern: pattern.to_owned().into(),
                    event: None,
                    publishes: None,
                    states: &[],
                    options: Options::DEFAULT,
                    package: "",
                    module: "",
                    file: place.file(),
                    line: place.line(),
                    docs: "",
                },
                worker: Worker::of_handler(handler),
            },
        }
    }

    /// Names the group; on a durable broker this is not optional.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.named = true;
        self.subscriber.subscription.group = group.into().into();
        self
    }

    async fn begin(self) -> Result<SubscriptionHandle> {
        let Self { bus, named, subscriber } = self;
        Pattern::new(&subscriber.subscription.pattern)?;
        let broker = &bus.shared.broker;
        if !named && broker.features().durable {
            return Err(StartupError::of_subscription(vec![census::nameless(
                &subscriber.subscription,
                broker.name(),
            )])
            .into());
        }
        let opening = Opening::begin(&bus.shared, &subscriber.subscription)?;
        let mut sharing = Sharing::default();
        let lanes = bus.open(&subscriber, &mut sharing).await?;
        bus.shared.tell(&sharing);
        opening.end(&lanes)?;
        Ok(SubscriptionHandle { bus, lanes })
    }
}

macro_rules! setters {
    (every { $($(#[$doc:meta])* $option:ident: $type:ty,)* } batch { $($batch:tt)* }) => {
        /// The options of `#[subscribe]`; what is left out, the bus decides.
        impl On {
            $($(#[$doc])* pub fn $option(mut self, $option: $type) -> Self {
                self.subscriber.subscription.options.$option = Some($option);
                self
            })*
        }
    };
}
with_options!(setters);

impl IntoFuture for On {
    type Output = Result<SubscriptionHandle>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.begin())
    }
}

impl fmt::Debug for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("On").field(&self.subscriber).finish()
    }
}

/// A subscription that was made at run time. Dropping this changes nothing; the subscription ends with the bus,
/// or when it is stopped.
pub struct SubscriptionHandle {
    bus: Bus,
    lanes: Arc<Lanes>,
}

impl SubscriptionHandle {
    /// What was subscribed.
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        self.lanes.subscription()
    }

    /// Ends the subscription: takes nothing more, and lets the handlers that run finish. One of them that awaits this
    /// waits for itself; let it spawn a task that does.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the subscription ends all the same, in the background.
    pub async fn stop(self) {
        let current = self.current();
        current.iter().for_each(|lanes| lanes.stop());
        let handle = Arc::new(self);
        let home = handle.bus.shared.home.enter();
        let stopping = home.map(|_entered| tokio::spawn(Arc::clone(&handle).end()));
        if let Ok(stopping) = stopping
            && stopping.await.is_ok()
        {
            return;
        }
        // The runtime has ended, and the handlers with it.
        handle.end().await;
    }

    /// The lanes as they are now: a rebuild puts others in the place of these, perhaps right now.
    fn current(&self) -> Option<Arc<Lanes>> {
        let ours = |lanes: &&Arc<Lanes>| Arc::ptr_eq(lanes.scope(), self.lanes.scope());
        self.bus.shared.stage.lock().lanes.iter().find(ours).cloned()
    }

    async fn end(self: Arc<Self>) {
        while let Some(current) = self.current() {
            current.stop();
            current.idle().await;
            current.close();
            self.bus.shared.stage.lock().lanes.retain(|lanes| !Arc::ptr_eq(lanes, &current));
        }
    }
}

impl fmt::Debug for SubscriptionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SubscriptionHandle").field(self.subscription()).finish()
    }
}
