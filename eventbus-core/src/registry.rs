//! The registry: what `#[subscribe]`, `#[derive(Event)]` and `topics!` left behind for the linker to assemble.
//!
//! This is the only file that knows `linkme` and `inventory`. `linkme` serves by default; `inventory` serves on
//! wasm, which linkme does not support, and wherever its feature is on: a core that is built as a `dylib`, and
//! plugins, have sections of their own, which linkme cannot see together.

use crate::broker::Scheme;
use crate::event::{EventMeta, Reader};
use crate::subscription::Subscription;
use crate::worker::Worker;
use std::sync::OnceLock;

/// A subscription together with its handler, as constant data.
///
/// The function that carries `#[subscribe]` has a twin of the same name among the types, which holds it:
/// `send_confirmation::SUBSCRIBER`. The option `as` gives the twin another name.
///
/// ```
/// #[eventbus::subscribe("order.>", retries = 8)]
/// async fn audit(_envelope: &eventbus::Envelope) {}
///
/// assert_eq!(audit::SUBSCRIBER.subscription.pattern, "order.>");
/// assert_eq!(audit::SUBSCRIBER.subscription.options.retries, Some(8));
/// ```
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Who listens on what, and how.
    pub subscription: Subscription,
    /// What runs the handler.
    #[doc(hidden)]
    pub worker: Worker,
}

impl AsRef<str> for Subscriber {
    /// The group, by which a subscriber is chosen.
    fn as_ref(&self) -> &str {
        &self.subscription.group
    }
}

/// The topics that a crate declares with `topics!`.
#[derive(Debug)]
pub struct Catalog {
    /// The package that declares the topics.
    pub package: &'static str,
    /// The topics.
    pub topics: &'static [&'static str],
    /// The catalogs whose topics are also known.
    pub extends: &'static [&'static Catalog],
}

/// One entry of the registry.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// A subscriber.
    Subscriber(&'static Subscriber),
    /// An event type, and what reads its payloads.
    Event(&'static EventMeta, Reader),
    /// A catalog of topics.
    Catalog(&'static Catalog),
    /// The scheme of a broker's addresses.
    Scheme(&'static Scheme),
    /// Nothing: some linkers cannot make a section without any entry.
    Sentinel,
}

/// An entry, with the module that left it behind.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    /// The module, as `module_path!` says it.
    pub module: &'static str,
    /// What it left.
    pub entry: Entry,
}

impl Submitted {
    const SENTINEL: Self = Self { module: module_path!(), entry: Entry::Sentinel };
}

#[cfg(not(any(feature = "inventory", target_family = "wasm")))]
#[allow(
    unsafe_code,
    reason = "linkme names a link section, which the lint counts as unsafe; the types are checked"
)]
mod backend {
    use super::Submitted;
    pub use linkme;

    /// Every entry of the program.
    // The name carries the version: two copies of this crate in one program must not share a section.
    #[linkme::distributed_slice]
    pub static EVENTBUS_REGISTRY_V0_1: [Submitted];

    #[linkme::distributed_slice(EVENTBUS_REGISTRY_V0_1)]
    static SENTINEL: Submitted = Submitted::SENTINEL;

    pub(super) fn submitted() -> impl Iterator<Item = Submitted> {
        EVENTBUS_REGISTRY_V0_1.iter().copied()
    }

    /// Submits an entry of the registry.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __submit {
        ($entry:expr) => {
            #[$crate::__private::linkme::distributed_slice($crate::__private::EVENTBUS_REGISTRY_V0_1)]
            #[linkme(crate = $crate::__private::linkme)]
            static __EVENTBUS_ENTRY: $crate::__private::Submitted =
                $crate::__private::Submitted { module: $crate::__private::module_path!(), entry: $entry };
        };
    }
}

#[cfg(any(feature = "inventory", target_family = "wasm"))]
mod backend {
    use super::Submitted;
    pub use inventory;

    inventory::collect!(Submitted);
    inventory::submit!(Submitted::SENTINEL);

    pub(super) fn submitted() -> impl Iterator<Item = Submitted> {
        inventory::iter::<Submitted>().copied()
    }

    /// Submits an entry of the registry.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __submit {
        ($entry:expr) => {
            $crate::__private::inventory::submit! {
                $crate::__private::Submitted { module: $crate::__private::module_path!(), entry: $entry }
            }
        };
    }
}

#[doc(hidden)]
pub use backend::*;

/// Every entry of this program.
fn entries() -> impl Iterator<Item = Entry> {
    let example = std::env::var(EXAMPLE).ok();
    backend::submitted()
        .filter(move |submitted| is_here(submitted.module, example.as_deref()))
        .map(|submitted| submitted.entry)
}

/// Which of the examples of a crate's documentation runs. rustdoc compiles them into one program, a module for each,
/// and runs each in a process of its own.
const EXAMPLE: &str = "RUSTDOC_DOCTEST_RUN_NB_TEST";

/// Whether what a module left behind is of this program, or else of another example in the same file.
fn is_here(module: &str, example: Option<&str>) -> bool {
    let (Some(running), Some(path)) = (example, module.strip_prefix("doctest_bundle_")) else { return true };
    let of = path.split("::").nth(1).and_then(|module| module.strip_prefix("__doctest_"));
    of.is_none_or(|number| number == running)
}

/// Every subscriber of the program, in the order of their places in the source: what the linker makes of their
/// order differs between debug and release.
pub fn subscribers() -> &'static [&'static Subscriber] {
    static SORTED: OnceLock<Vec<&'static Subscriber>> = OnceLock::new();
    SORTED.get_or_init(|| {
        let mut subscribers: Vec<_> = entries()
            .filter_map(
                |entry| if let Entry::Subscriber(subscriber) = entry { Some(subscriber) } else { None },
            )
            .collect();
        subscribers.sort_by_key(|subscriber| {
            let subscription = &subscriber.subscription;
            (
                subscription.package,
                subscription.file,
                subscription.line,
                &subscription.group,
                &subscription.pattern,
            )
        });
        subscribers
    })
}

/// Every event type of the program, by topic and version.
pub(crate) fn events() -> Vec<&'static EventMeta> {
    readers().iter().map(|(event, _)| *event).collect()
}

/// Every event type of the program with what reads its payloads, by topic and version.
pub(crate) fn readers() -> &'static [(&'static EventMeta, Reader)] {
    static SORTED: OnceLock<Vec<(&'static EventMeta, Reader)>> = OnceLock::new();
    SORTED.get_or_init(|| {
        let mut readers: Vec<_> = entries()
            .filter_map(
                |entry| if let Entry::Event(event, reader) = entry { Some((event, reader)) } else { None },
            )
            .collect();
        readers.sort_by_key(|(event, _)| (event.topic, event.version, event.file, event.line));
        readers
    })
}

/// Every catalog of the program, by package.
pub(crate) fn catalogs() -> Vec<&'static Catalog> {
    let mut catalogs: Vec<_> = entries()
        .filter_map(|entry| if let Entry::Catalog(catalog) = entry { Some(catalog) } else { None })
        .collect();
    catalogs.sort_by_key(|catalog| (catalog.package, catalog.topics));
    catalogs
}

/// The schemes of the brokers that are linked, by name.
pub(crate) fn schemes() -> Vec<&'static Scheme> {
    let mut schemes: Vec<_> = entries()
        .filter_map(|entry| if let Entry::Scheme(scheme) = entry { Some(scheme) } else { None })
        .collect();
    schemes.sort_by_key(|scheme| scheme.name);
    schemes
}

/// Leaves a broker's [`Scheme`](crate::broker::Scheme) in the registry, for `Bus::connect`. Once in a module.
///
/// ```
/// use eventbus_core::broker::{BrokerFuture, Scheme};
/// use eventbus_core::memory::MemoryBroker;
/// use std::sync::Arc;
///
/// eventbus_core::register_scheme!(Scheme {
///     name: "small-memory",
///     open: |_address| {
///         let broker = MemoryBroker::builder().capacity(10).build();
///         BrokerFuture::ready(Ok(Arc::new(broker)))
///     },
/// });
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! register_scheme {
    ($scheme:expr) => {
        const _: () = {
            static SCHEME: $crate::broker::Scheme = $scheme;
            $crate::__submit!($crate::__private::Entry::Scheme(&SCHEME));
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_one_documentation_are_programs_of_their_own() {
        for (module, example, here) in [
            ("doctest_bundle_2024::__doctest_7", Some("7"), true),
            ("doctest_bundle_2024::__doctest_7::inner", Some("7"), true),
            ("doctest_bundle_2024::__doctest_71", Some("7"), false),
            ("doctest_bundle_2024::__doctest_8::inner", Some("7"), false),
            // The crate that is documented.
            ("shop::handlers", Some("7"), true),
            ("doctest_bundle_2024", Some("7"), true),
            // Nobody says which one runs.
            ("doctest_bundle_2024::__doctest_8", None, true),
            ("shop::__doctest_8", None, true),
        ] {
            assert_eq!(is_here(module, example), here, "{module} while {example:?} runs");
        }
    }
}
