//! Codecs: how a value becomes bytes and back.

use crate::error::BoxError;
use crate::finite;
use crate::media_type::is_json;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Turns values into bytes and back, under one media type.
///
/// A codec is a type, chosen per event (`#[event(codec = …)]`, [`Json`] where nothing is said), so publisher and
/// subscriber agree on it when the program compiles, and no value is ever encoded through a vtable.
///
/// ```
/// use bytes::Bytes;
/// use eventbus_core::{BoxError, Codec};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// JSON with line breaks, for people.
/// struct Pretty;
///
/// impl Codec for Pretty {
///     const CONTENT_TYPE: &'static str = "application/json; charset=utf-8";
///
///     fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BoxError> {
///         Ok(serde_json::to_vec_pretty(value)?.into())
///     }
///
///     fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
///         Ok(serde_json::from_slice(payload)?)
///     }
/// }
/// # assert_eq!(Pretty::decode::<u8>(&Pretty::encode(&7).unwrap()).unwrap(), 7);
/// ```
pub trait Codec: 'static {
    /// The media type that payloads of this codec carry as `datacontenttype` (RFC 2046).
    const CONTENT_TYPE: &'static str;

    /// Encodes a value.
    ///
    /// # Errors
    /// Where the value has no form in this codec, such as a map with keys that are no text in JSON.
    fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BoxError>;

    /// Looks for what this codec cannot carry, without encoding: it is called on every event that is published, also
    /// where nobody asks for the event's bytes. By default a codec whose media type is JSON refuses NaN, the infinities,
    /// maps with keys that are no texts, and more than 127 lists and maps inside of each other; others refuse nothing.
    ///
    /// # Errors
    /// Where the value holds such a thing; the error says where.
    fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), BoxError> {
        if const { is_json(Self::CONTENT_TYPE) } { Ok(finite::check(value)?) } else { Ok(()) }
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// Where `payload` is not such a value; the error says where.
    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError>;
}

/// JSON ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)) by serde_json: the default codec, and an argument
/// of handlers that take a payload without an event type.
///
/// Numbers come back as they were, to the last bit of a double. What JSON has no form for (NaN, the infinities, maps
/// with keys that are no texts) is an error, not `null`.
///
/// ```
/// use eventbus_core::Json;
///
/// async fn count(Json(payload): Json<serde_json::Value>) {
///     println!("{} items", payload["items"].as_array().map_or(0, Vec::len));
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<V = ()>(pub V);

impl Codec for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BoxError> {
        finite::check(value)?;
        Ok(serde_json::to_vec(value)?.into())
    }

    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(payload)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_doubles_and_singles_come_back_to_the_last_bit() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let edges =
            [0.0, -0.0, f64::MIN, f64::MAX, f64::MIN_POSITIVE, f64::from_bits(1), f64::EPSILON, 1e23, 0.1];
        let doubles = (0..1_000_000).map(|_| match random.u8(..) {
            // Subnormals are rare among random bits.
            0..16 => f64::from_bits(random.u64(..) & (u64::MAX >> 12 | 1 << 63)),
            _ => f64::from_bits(random.u64(..)),
        });
        for double in edges.into_iter().chain(doubles).filter(|double| double.is_finite()) {
            let read: f64 = Json::decode(&Json::encode(&double).unwrap()).unwrap();
            assert_eq!(read.to_bits(), double.to_bits(), "{double:e}, seed {seed}");
            let single = f32::from_bits(double.to_bits() as u32);
            if single.is_finite() {
                let read: f32 = Json::decode(&Json::encode(&single).unwrap()).unwrap();
                assert_eq!(read.to_bits(), single.to_bits(), "{single:e}, seed {seed}");
            }
        }
    }
}
