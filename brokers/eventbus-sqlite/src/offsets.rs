//! Offsets of the contract, and places in the file.

use eventbus_core::Envelope;
use eventbus_core::broker::Offset;

/// A place in the file as an offset of the contract.
pub(crate) fn offset_of(place: i64) -> Offset {
    Offset::new(u128::try_from(place).unwrap_or_default())
}

/// An offset of the contract as a place in the file.
pub(crate) fn place(offset: Offset) -> i64 {
    i64::try_from(offset.get()).unwrap_or(i64::MAX)
}

/// The offset behind a place: the file says up to where something holds, the contract says below which offset.
pub(crate) fn behind(place: i64) -> Offset {
    offset_of(place.saturating_add(1))
}

/// The last place below an offset.
pub(crate) fn before(offset: Offset) -> i64 {
    place(offset) - 1
}

/// The size of an event that was read: its payload, and what stands around it.
pub(crate) fn size(envelope: &Envelope) -> usize {
    envelope.payload().map_or(0, |payload| payload.len()) + envelope.attributes_size()
}
