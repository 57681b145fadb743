//! A crate that hides the names of the prelude, and writes functions and types in unusual ways.

#![forbid(unsafe_code)]
#![deny(warnings, missing_docs, unused, unreachable_pub)]

use eventbus::{Attempt, Envelope, Event, State, subscribe, subscriber};
use serde::{Deserialize, Serialize};

#[allow(dead_code)]
mod hides {
    pub(crate) mod core {}
    pub(crate) mod alloc {}
    pub(crate) mod serde_json {}
    pub(crate) mod linkme {}
    pub(crate) struct Option;
    pub(crate) struct Vec;
    pub(crate) enum Ok {}
    pub(crate) enum Err {}
    pub(crate) enum Some {}
    pub(crate) enum None {}
    pub(crate) trait From {}
    pub(crate) trait ToString {}
    pub(crate) trait Fn {}
    pub(crate) trait Send {}
    pub(crate) trait Sync {}
    pub(crate) type Result<T> = ::std::result::Result<T, ::std::string::String>;
}
#[allow(unused_imports)]
use hides::{Err, Fn, From, None, Ok, Option, Result, Send, Some, Sync, ToString, Vec, alloc, core, linkme, serde_json};

mod std {}

#[allow(unused_macros)]
mod macros {
    macro_rules! hide {
        ($($name:ident)*) => { $(macro_rules! $name { () => {} })* };
    }
    hide! { concat env file module_path panic }
}

const TOPIC: &str = "order.chosen";

const fn topic() -> &'static str {
    "order.typed"
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = TOPIC)]
enum Choice {
    A,
    B(u32),
    C { x: u8 },
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = ::std::concat!("order", ".paired"), key = 0, subject = 1)]
struct Pair(u64, String);

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = topic(), key = r#type)]
struct Typed {
    r#type: u64,
    numbers: [u8; 1 + 2],
}

mod events {
    #[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
    #[event(topic = super::TOPIC, version = 2, key = a, upcast_from = super::Choice)]
    pub(crate) struct Other {
        pub(super) a: u8,
    }

    #[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
    #[event(topic = "order.unit")]
    pub(crate) struct Unit;

    #[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
    #[event(topic = "order.empty")]
    pub(crate) struct Empty {}

    impl From<super::Choice> for Other {
        fn from(_: super::Choice) -> Self {
            Self { a: 0 }
        }
    }
}

#[subscribe(::std::concat!("order", ".paired"))]
async fn r#async(Pair(_, _): Pair, _: State<u32>, State(_number): State<u64>, Attempt(_): Attempt) -> Result<()>
where
    Pair: Clone,
{
    ::std::result::Result::Ok(())
}

#[subscribe(topic())]
async fn with_mut(mut typed: Typed) {
    typed.r#type += 1;
    let _ = (typed.r#type, typed.numbers);
}

#[subscribe(self::topic())]
async fn unnamed(_: &Typed) -> ::std::result::Result<events::Unit, ::std::io::Error> {
    ::std::result::Result::Ok(events::Unit)
}

#[subscribe(TOPIC)]
#[deprecated]
#[doc(hidden)]
async fn deprecated_below(_: &Choice) {}

#[deprecated(note = "by another")]
#[subscribe(TOPIC)]
#[subscribe("order.unit", group = "two")]
fn deprecated_above(_: &Envelope) {}

#[must_use]
#[subscribe(TOPIC)]
fn must_be_used(_: events::Other) -> events::Unit {
    events::Unit
}

#[subscribe(TOPIC)]
#[must_use = "below"]
#[inline]
extern "C" fn foreign(_: &Choice) {}

#[subscribe(TOPIC)]
#[track_caller]
fn tracked(_: &Choice) -> ::std::option::Option<events::Empty> {
    ::std::option::Option::None
}

struct Shop;

#[subscriber]
impl Shop {
    #[subscribe(TOPIC)]
    async fn r#type(&self, _: &Choice) {}

    #[deprecated]
    #[subscribe(TOPIC)]
    fn deprecated(&self, _: &Choice) {}

    #[subscribe(TOPIC)]
    fn receives(self: &Self, _: &Choice) {}
}

#[eventbus::main]
async fn main() -> ::std::result::Result<(), ::std::boxed::Box<dyn ::std::error::Error>> {
    drop([Choice::A, Choice::B(1), Choice::C { x: 1 }]);
    let bus = eventbus::Bus::builder().state(1_u32).state(2_u64).state(Shop).connect("memory:").await?;
    ::std::assert_eq!(eventbus::__private::subscribers().len(), 12);
    drop(bus);
    ::std::result::Result::Ok(())
}
