//! The words of eventbus that are written as text: topics, patterns, groups and durations.
//!
//! Everything here is a `const fn` without dependencies, so that one validator serves the macros (which report a
//! bad literal while it is typed), the compiler (which compares topics with event types) and the running program.
//! Applications reach these items through `eventbus`.

#![forbid(unsafe_code)]

mod duration;
mod group;
mod nearest;
mod text;
mod topic;

pub use duration::{DurationFault, duration, duration_range};
pub use group::{MAX_GROUP, is_group};
pub use nearest::{distance, is_near};
pub use text::Text;
pub use topic::{MAX_LEN, TopicFault, check_pattern, check_topic, matches, overlap};
