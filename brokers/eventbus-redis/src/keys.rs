//! Keys: where in the server everything of a bus stands.

use eventbus_core::{Pattern, Topic};
use std::fmt;

/// The names of a bus's keys; all begin with its prefix.
///
/// | key | type | what |
/// |---|---|---|
/// | `…:topic:<topic>` | stream | the events of a topic |
/// | `…:topics` | set | the topics there are |
/// | `…:clock` | string | the place of the latest event |
/// | `…:news` | stream | what processes tell each other: new topics, leases that are free |
/// | `…:once:<id> <source>` | string | an event that was published a moment ago, by its id |
/// | `…:done:<token>` | string | a call that was done a moment ago, and may be sent again after a lost connection |
/// | `…:groups` | set | the groups there are |
/// | `…:group:<group>` | hash | the patterns of a group, each with the place where it began |
/// | `…:seen:<group>` | hash | the patterns of a group, each with the latest event when a process had it last |
/// | `…:lease:<group> <pattern>` | string | which process handles the group, until the key expires |
/// | `…:token:<group> <pattern>` | string | which process was the last to take the group over: the fence |
/// | `…:members:<group> <pattern>` | sorted set | the processes of a group that compete, by the end of their patience |
/// | `…:parked:<group>` | hash | the deliveries that wait for another attempt |
/// | `…:suspects:<group>` | hash | the deliveries that may have ended a process, while it is looked for one that did |
/// | `…:mended:<group>` | hash | the payloads that were mended for a group |
/// | `…:again:<group>:<topic>` | stream | dead letters of a topic that were published again, for this group only |
/// | `…:agains:<group>` | set | the topics that have such a stream |
/// | `…:dead:<group>` | stream | the dead letters of a group |
/// | `…:dead` | set | the groups that have dead letters |
#[derive(Clone)]
pub(crate) struct Keys {
    /// The prefix with its colon.
    prefix: String,
}

impl Keys {
    /// Keys under `prefix`. In a cluster they have one hash tag, so that they are in one slot, on one node.
    pub(crate) fn new(prefix: &str, cluster: bool) -> Self {
        let prefix =
            if cluster && !prefix.contains('{') { format!("{{{prefix}}}:") } else { format!("{prefix}:") };
        Self { prefix }
    }

    /// What scripts put before the names of keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn topic(&self, topic: &Topic) -> String {
        format!("{}topic:{topic}", self.prefix)
    }

    pub(crate) fn topics(&self) -> String {
        format!("{}topics", self.prefix)
    }

    pub(crate) fn clock(&self) -> String {
        format!("{}clock", self.prefix)
    }

    pub(crate) fn news(&self) -> String {
        format!("{}news", self.prefix)
    }

    pub(crate) fn token(&self, group: &str, pattern: &Pattern) -> String {
        format!("{}token:{group} {pattern}", self.prefix)
    }

    pub(crate) fn parked(&self, group: &str) -> String {
        format!("{}parked:{group}", self.prefix)
    }

    pub(crate) fn suspects(&self, group: &str) -> String {
        format!("{}suspects:{group}", self.prefix)
    }

    pub(crate) fn mended(&self, group: &str) -> String {
        format!("{}mended:{group}", self.prefix)
    }

    pub(crate) fn again(&self, group: &str, topic: &Topic) -> String {
        format!("{}again:{group}:{topic}", self.prefix)
    }

    pub(crate) fn agains(&self, group: &str) -> String {
        format!("{}agains:{group}", self.prefix)
    }

    pub(crate) fn groups(&self) -> String {
        format!("{}groups", self.prefix)
    }

    pub(crate) fn group(&self, group: &str) -> String {
        format!("{}group:{group}", self.prefix)
    }

    pub(crate) fn dead(&self, group: &str) -> String {
        format!("{}dead:{group}", self.prefix)
    }

    /// The groups that have dead letters.
    pub(crate) fn dead_groups(&self) -> String {
        format!("{}dead", self.prefix)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.prefix)
    }
}

/// The slot of a cluster that a key is in.
///
/// ```text
/// CRC16 (XMODEM) of the hash tag, or of the whole key where there is none, modulo 16,384
/// ```
pub(crate) fn slot(key: &str) -> u16 {
    let bytes = key.as_bytes();
    let tag = bytes.iter().position(|byte| *byte == b'{').and_then(|open| {
        let length = bytes[open + 1..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &bytes[open + 1..open + 1 + length])
    });
    let crc =
        tag.unwrap_or(bytes).iter().fold(0_u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_cluster_all_keys_are_in_one_slot() {
        for prefix in ["eventbus", "{shop}.events", "a{b}"] {
            let keys = Keys::new(prefix, true);
            let topics = ["order.placed", "user.created"].map(|topic| keys.topic(&Topic::from_static(topic)));
            assert_eq!(slot(&topics[0]), slot(&topics[1]), "{topics:?}");
            assert_eq!(slot(&topics[0]), slot(&keys.clock()), "{topics:?}");
        }
        assert_eq!(Keys::new("eventbus", false).clock(), "eventbus:clock");
    }

    /// As the specification of clusters and `CLUSTER KEYSLOT` have them.
    #[test]
    fn slots_are_those_of_the_server() {
        for (key, expected) in
            [("123456789", 0x31c3), ("foo", 12_182), ("{user1000}.following", slot("user1000")), ("", 0)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_ne!(slot("foo{}{bar}"), slot("bar"));
    }
}
