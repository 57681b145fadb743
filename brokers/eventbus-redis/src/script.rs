//! Scripts: what has to happen in one step at the server.
//!
//! They are sent as text (`EVAL`): the server keeps what it has compiled by the digest of that, and after a restart there
//! is nothing to be loaded first, in the middle of publishes that have an order.

use crate::broker::Store;
use crate::keeper::millis;
use crate::keys::Keys;
use redis::Cmd;
use std::time::Duration;

/// So long after a connection was lost its calls may be sent again, at most: whoever waits for an answer waits less.
const REMEMBERED: Duration = Duration::from_secs(600);

/// A script. Its key is the clock of the bus, by which a cluster finds its node; it puts together the names of others
/// from the prefix, its first argument. All have one slot.
///
/// Those by which groups get on run where the server has no memory left (`allow-oom`): what they add is small, and events
/// can be removed only once they are settled.
pub(crate) struct Script(&'static str);

impl Script {
    /// A call, to which its arguments are added.
    pub(crate) fn call(&self, keys: &Keys) -> Cmd {
        let mut call = redis::cmd("EVAL");
        call.arg(self.0).arg(1).arg(keys.clock()).arg(keys.prefix());
        call
    }

    /// A call that is done once, however often it is sent: the second time it is answered as the first.
    pub(crate) fn call_once(&self, store: &Store) -> Cmd {
        let mut call = self.call(&store.keys);
        call.arg(store.token()).arg(millis(REMEMBERED.max(store.settings.connect_timeout * 2)));
        call
    }
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)*) => {$(
        pub(crate) const $name: Script = Script(include_str!(concat!("scripts/", $file, ".lua")));
    )*};
}
scripts! {
    ACK = "ack",
    ACQUIRE = "acquire",
    BEAT = "beat",
    CHANGE = "change",
    COUNT = "count",
    FENCE = "fence",
    FIRSTS = "firsts",
    GROUPS = "groups",
    GUARDED = "guarded",
    LATEST = "latest",
    LEAVE = "leave",
    NOTE = "note",
    PARK = "park",
    PATTERNS = "patterns",
    PUBLISH = "publish",
    PURGE = "purge",
    REGISTER = "register",
    REJECT = "reject",
    RENEW = "renew",
    REPUBLISH = "republish",
    STRAYS = "strays",
    TIDY = "tidy",
    TRIM = "trim",
}
