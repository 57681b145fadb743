//! State: what handlers share, such as a mailer or a connection pool.

mod missing;

pub(crate) use missing::relation;

use crate::foreign::Kept;
use crate::subscription::StateType;
use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

/// A value that was given to the bus with `state(…)`, as an argument of a handler: `mailer: State<Mailer>`, or
/// `State(mailer): State<Mailer>` for the `Arc` in it.
///
/// ```
/// use eventbus_core::State;
///
/// struct Mailer { from: &'static str }
///
/// // A test calls the handler with a state of its own.
/// let mailer = State::new(Mailer { from: "shop@example.com" });
/// assert_eq!(mailer.from, "shop@example.com");
/// ```
///
/// It reads as the value itself, its fields and methods included, with one exception: `.0` is its own field, so a newtype
/// gives its first field by a method, or once it is taken out by the pattern.
///
/// ```
/// # use eventbus_core::State;
/// # use std::sync::{Mutex, MutexGuard};
/// struct Stock(Mutex<Vec<String>>);
///
/// impl Stock {
///     fn lock(&self) -> MutexGuard<'_, Vec<String>> {
///         self.0.lock().unwrap()
///     }
/// }
///
/// async fn by_a_method(stock: State<Stock>) {
///     stock.lock().clear(); // `stock.0` is the `Arc<Stock>`
/// }
///
/// async fn by_the_pattern(State(stock): State<Stock>) {
///     stock.0.lock().unwrap().clear();
/// }
/// # fn main() {
/// #     let stock = State::new(Stock(Mutex::new(vec!["tea".into()])));
/// #     assert_eq!(stock.lock().len(), 1);
/// # }
/// ```
///
/// axum has a `State` too. Where both are in use, write `eventbus::State` in the signatures of handlers.
#[derive(Debug)]
pub struct State<S>(pub Arc<S>);

impl<S: Send + Sync + 'static> State<S> {
    /// Wraps a value, for calling a handler in a test.
    pub fn new(state: S) -> Self {
        Self(Arc::new(state))
    }

    /// The value, to be kept beyond the call.
    #[must_use]
    pub fn into_arc(self) -> Arc<S> {
        self.0
    }

    /// How the start-up check knows this type.
    pub const TYPE: StateType = StateType { id: TypeId::of::<S>(), name: type_name::<S> };
}

impl<S> Clone for State<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Deref for State<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S> From<Arc<S>> for State<S> {
    fn from(state: Arc<S>) -> Self {
        Self(state)
    }
}

/// The states of one bus, by type.
#[derive(Clone, Default)]
pub(crate) struct States(HashMap<TypeId, Given>);

/// A state, and what its type is called.
#[derive(Clone)]
struct Given {
    value: Kept<Arc<dyn Any + Send + Sync>>,
    name: fn() -> &'static str,
}

impl States {
    pub(crate) fn insert<S: Send + Sync + 'static>(&mut self, state: Arc<S>) {
        let value: Arc<dyn Any + Send + Sync> = state;
        self.0.insert(TypeId::of::<S>(), Given { value: Kept::new(value), name: type_name::<S> });
    }

    /// Takes in the others, in place of its own of the same types.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn get<S: Send + Sync + 'static>(&self) -> Option<State<S>> {
        let state = Arc::clone(&*self.0.get(&TypeId::of::<S>())?.value);
        state.downcast().ok().map(State)
    }

    pub(crate) fn contains(&self, wanted: &StateType) -> bool {
        self.0.contains_key(&wanted.id)
    }

    /// What to do where a state is missing, by what was given in its place, most likely.
    pub(crate) fn remedy(&self, wanted: &StateType) -> String {
        let mut given: Vec<_> = self.0.values().map(|given| (given.name)()).collect();
        given.sort_unstable();
        missing::remedy((wanted.name)(), &given)
    }
}
