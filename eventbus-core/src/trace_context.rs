//! Trace context: `traceparent` and `tracestate` after
//! [W3C Trace Context](https://www.w3.org/TR/trace-context/), from publish to handle to publish.

use crate::envelope::Envelope;
use crate::headers::Headers;
use crate::log;
use std::fmt;

/// The name of the header that carries trace id, parent id and flags.
const PARENT: &str = "traceparent";
/// The name of the header that carries the tracing systems' own entries.
const STATE: &str = "tracestate";
/// A `tracestate` with more members than this is dropped whole.
const STATE_MEMBERS: usize = 32;
/// The flags of a trace that starts here: sampled.
const SAMPLED: u8 = 1;

/// Where an event stands in a distributed trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl TraceContext {
    /// The trace that an event came with. A missing, doubled or malformed `traceparent` is none.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        let mut values = headers.get_all(PARENT);
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.trim()),
            _ => None,
        }
    }

    fn parse(value: &str) -> Option<Self> {
        let lower_hex = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
        };
        let mut parts = value.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let well_formed = lower_hex(version, 2)
            && lower_hex(trace, 32)
            && lower_hex(parent, 16)
            && lower_hex(flags, 2)
            && version != "ff"
            // Later versions may append fields; version 00 may not.
            && (version != "00" || parts.next().is_none());
        if !well_formed {
            return None;
        }
        let context = Self {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            parent_id: u64::from_str_radix(parent, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (context.trace_id != 0 && context.parent_id != 0).then_some(context)
    }

    /// A trace that starts with `envelope`. The id of an event is random enough to name its trace, too.
    fn start(envelope: &Envelope) -> Self {
        let trace_id = envelope.id().as_u128().unwrap_or_else(|| fastrand::u128(1..));
        Self { trace_id, parent_id: fastrand::u64(1..), flags: SAMPLED }
    }

    fn child(self) -> Self {
        Self { parent_id: fastrand::u64(1..), ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

/// Links an event that is about to be published to the trace of its cause. Without a cause a trace starts here,
/// if anybody records spans; a `traceparent` that is set already stays.
pub(crate) fn link(envelope: &mut Envelope, cause: Option<&Envelope>) {
    if envelope.headers().get(PARENT).is_some() {
        return;
    }
    let inherited = cause.and_then(|cause| TraceContext::of(cause.headers()));
    let context = match inherited {
        Some(context) => context.child(),
        None if log::is_traced() => TraceContext::start(envelope),
        None => return,
    };
    envelope.headers_mut().insert(PARENT, context.to_string());
    if let (Some(_), Some(cause)) = (inherited, cause) {
        let members: Vec<_> = cause.headers().get_all(STATE).collect();
        let state = members.join(",");
        if !state.is_empty() && state.split(',').count() <= STATE_MEMBERS {
            envelope.headers_mut().insert(STATE, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn envelope() -> Envelope {
        Envelope::from_json(Topic::from_static("a"), &1).unwrap()
    }

    fn caused(cause: &Envelope) -> Envelope {
        let mut envelope = envelope();
        link(&mut envelope, Some(cause));
        envelope
    }

    #[test]
    fn a_caused_event_continues_the_trace_with_an_id_of_its_own() {
        let cause = envelope().with_header("TraceParent", VALID).with_header("tracestate", "a=1,b=2");
        let event = caused(&cause);
        let parent = event.headers().get("traceparent").unwrap();
        assert!(parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent.ends_with("-01"));
        assert_ne!(parent, VALID);
        assert_eq!(event.headers().get("tracestate"), Some("a=1,b=2"));
    }

    #[test]
    fn malformed_parents_are_not_continued() {
        for parent in [
            "",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            assert_eq!(TraceContext::parse(parent), None, "{parent}");
        }
        assert!(TraceContext::parse(&VALID.replacen("00", "cc", 1)).is_some());
    }

    #[test]
    fn a_doubled_parent_is_not_continued() {
        let mut cause = envelope();
        cause.headers_mut().append("traceparent", VALID);
        cause.headers_mut().append("traceparent", VALID);
        assert_eq!(caused(&cause).headers().get("traceparent"), None);
    }

    #[test]
    fn a_trace_state_with_too_many_members_is_dropped_whole() {
        let state = (0..33).map(|member| format!("m{member}=1")).collect::<Vec<_>>().join(",");
        let cause = envelope().with_header("traceparent", VALID).with_header("tracestate", state);
        assert_eq!(caused(&cause).headers().get("tracestate"), None);
    }
}
