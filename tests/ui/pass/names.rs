//! A handler has the name that it would have without the attribute, whatever else has that name.

#![deny(warnings, unreachable_pub)]

use eventbus::{Envelope, subscribe};

mod ship_order {
    use eventbus::{Envelope, subscribe};

    #[subscribe("order.placed")]
    pub(crate) async fn ship_order(_event: &Envelope) {}

    pub(crate) mod tests {
        use super::*;

        pub(crate) fn group() -> &'static str {
            ship_order::SUBSCRIBER.as_ref()
        }
    }
}
pub(crate) use ship_order::ship_order;

mod audit {
    pub(crate) const BESIDE: u32 = 1;
}

#[subscribe("order.placed")]
async fn audit(_event: &Envelope) {}

mod handlers {
    #[eventbus::subscribe("order.placed")]
    pub(crate) async fn visible(_event: &eventbus::Envelope) {}

    #[eventbus::subscribe("order.placed", as = Taken)]
    pub(crate) async fn taken(_event: &eventbus::Envelope) {}

    #[eventbus::subscribe("order.placed")]
    pub(in crate::handlers) async fn in_path(_event: &eventbus::Envelope) {}

    pub(crate) mod all {
        #[eventbus::subscribe("order.placed")]
        pub(crate) async fn all(_event: &eventbus::Envelope) {}
    }
    use all::*;

    pub(crate) async fn of_all(event: &eventbus::Envelope) {
        all(event).await;
    }

    pub(crate) fn group_of_in_path() -> &'static str {
        let _ = in_path;
        in_path::SUBSCRIBER.as_ref()
    }
}
use handlers::taken;
mod taken {}

// Crates and primitive types are not hidden by a handler of their name.
use serde::Serialize;

#[subscribe("order.placed")]
async fn serde(_event: &Envelope) {}

#[subscribe("order.placed")]
async fn eventbus(_event: &eventbus::Envelope) {}

#[subscribe("order.placed")]
async fn std(_event: &Envelope) {}

#[subscribe("order.placed")]
async fn char(_event: &Envelope) {}

// Names that generated code might have had.
#[subscribe("order.placed")]
async fn subscribe(_event: &Envelope) {}

#[subscribe("order.placed")]
async fn subscription(_event: &Envelope) {}

#[subscribe("order.placed")]
fn call(_event: &Envelope) {}

#[subscribe("order.placed", batch = 2)]
fn admit(_orders: Vec<Placed>) {}

#[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed")]
struct Placed;

mod one {
    #[eventbus::subscribe("order.placed")]
    fn same(_event: &eventbus::Envelope) {}
}

mod two {
    #[eventbus::subscribe("order.placed", group = "same-too")]
    fn same(_event: &eventbus::Envelope) {}
}

fn main() {
    fn is_there<T: Serialize>(_: T) {}
    is_there('a');

    mod inside {
        pub(crate) const BESIDE: char = '2';
    }

    #[subscribe("order.placed")]
    async fn inside(_event: &Envelope) {}

    #[subscribe("order.placed")]
    async fn inside_too(_event: &Envelope) {}

    let _ = (ship_order, audit, taken, serde, eventbus, std, char, inside, inside_too, handlers::of_all);
    assert_eq!((audit::BESIDE, inside::BESIDE), (1, '2'));
    let groups = [
        ship_order::tests::group(),
        handlers::visible::SUBSCRIBER.as_ref(),
        handlers::Taken::SUBSCRIBER.as_ref(),
        handlers::group_of_in_path(),
        inside_too::SUBSCRIBER.as_ref(),
        admit::SUBSCRIBER.as_ref(),
    ];
    let names = groups.map(|group| group.rsplit_once('.').unwrap().1);
    assert_eq!(names, ["ship_order", "visible", "taken", "in_path", "inside_too", "admit"]);
    let all = eventbus::__private::subscribers();
    assert_eq!(all.len(), 18);
}
