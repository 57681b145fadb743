#![doc = include_str!("docs/tour.md")]
#![forbid(unsafe_code)]

#[doc(hidden)]
pub use eventbus_core::__private;
pub use eventbus_core::*;

#[cfg(feature = "sqlite")]
#[doc(inline)]
pub use eventbus_sqlite as sqlite;

#[doc = include_str!("docs/event.md")]
#[doc(inline)]
pub use eventbus_macros::Event;
#[doc = include_str!("docs/link_all.md")]
#[doc(inline)]
pub use eventbus_macros::link_all;
#[doc = include_str!("docs/main.md")]
#[doc(inline)]
pub use eventbus_macros::main;
#[doc = include_str!("docs/publish.md")]
#[doc(inline)]
pub use eventbus_macros::publish;
#[doc = include_str!("docs/subscribe.md")]
#[doc(inline)]
pub use eventbus_macros::subscribe;
#[doc = include_str!("docs/subscriber.md")]
#[doc(inline)]
pub use eventbus_macros::subscriber;
#[doc = include_str!("docs/topics.md")]
#[doc(inline)]
pub use eventbus_macros::topics;

#[doc = include_str!("docs/link.md")]
#[macro_export]
macro_rules! link {
    ($($name:ident),+ $(,)?) => { $(#[allow(unused_imports)] use ::$name as _;)+ };
}

#[doc = include_str!("docs/check.md")]
#[macro_export]
macro_rules! check {
    () => {
        $crate::__private::check_test!();
    };
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
