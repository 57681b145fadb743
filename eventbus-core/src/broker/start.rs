//! Where a group begins.

use crate::command_line::command_with_handlers;
use crate::counted::{count, counted};
use crate::topic::Pattern;

/// Where a new group begins; a group that the broker knows goes on where it was.
///
/// A start that is changed later therefore changes nothing, and no warning says so: a broker does not know where a group
/// began. [`Bus::replay`](crate::Bus::replay) (`replay` on the command line) delivers the events before, beside the live
/// ones; or, while no process handles the group, [`Groups::seek`](crate::broker::Groups::seek) (`groups seek`) moves it
/// back. Either way the handler has what it handled before again.
///
/// ```
/// use eventbus::{Bus, Start, subscribe};
/// # use eventbus::Event;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
/// # #[event(topic = "order.placed", key = id)]
/// # struct OrderPlaced { id: u64 }
///
/// // A read model wants all there was.
/// #[subscribe(start = "earliest")]
/// async fn orders_by_day(_order: OrderPlaced) {}
///
/// # async fn begin() -> eventbus::Result<()> {
/// // The same, for all subscriptions that do not say otherwise.
/// let bus = Bus::builder().start(Start::Earliest).connect("sqlite:shop.db").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the first event that is published after the bus is connected.
    #[default]
    Latest,
    /// With the oldest event that the broker keeps.
    Earliest,
}

impl Start {
    /// Reads a start as it is written in `#[subscribe(start = "earliest")]`.
    ///
    /// # Panics
    /// Where `text` is neither "latest" nor "earliest"; in a `const` this is a compile error.
    #[must_use]
    pub const fn parse(text: &str) -> Self {
        match text.as_bytes() {
            b"latest" => Self::Latest,
            b"earliest" => Self::Earliest,
            _ => panic!("{}", eventbus_grammar::Text::new().push_quoted(text).push(
                " is not a start; write \"latest\" (events published from now on) or \"earliest\" (all that are kept)",
            ).as_str()),
        }
    }
}

/// How many events are counted that a new group skips.
#[doc(hidden)]
pub const SKIPPED: usize = 100_000;

/// What is said of a group that is new on a pattern and begins at [`Start::Latest`] behind so many events on it; nothing,
/// where there are none. No more than [`SKIPPED`] and one need be counted. `address` is that of the broker.
#[doc(hidden)]
#[must_use]
pub fn skipped(group: &str, pattern: &Pattern, events: usize, address: Option<&str>) -> Option<String> {
    let events = match events {
        0 => return None,
        many if many > SKIPPED => format!("more than {} earlier events", count(SKIPPED)),
        some => counted(some, "earlier event"),
    };
    let command = command_with_handlers(address, &["replay", group]);
    let command = command.map(|command| format!(" or {command}")).unwrap_or_default();
    Some(format!(
        "the group `{group}` begins with what is published from now on: it skips {events} on \"{pattern}\", where it is \
         new. `bus.replay(\"{group}\")`{command} delivers them, and the effects of its handler happen for each; a new group with \
         `start = \"earliest\"` begins with them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_skips_events_says_how_many_up_to_a_bound() {
        let said = |events| skipped("mail", &Pattern::new("order.>").unwrap(), events, None);
        assert_eq!(said(0), None);
        assert!(said(1).unwrap().contains("skips 1 earlier event on \"order.>\""));
        assert!(said(SKIPPED).unwrap().contains("skips 100,000 earlier events"));
        assert!(said(SKIPPED + 1).unwrap().contains("skips more than 100,000 earlier events"));
    }
}
