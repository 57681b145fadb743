//! Codecs: how a value becomes bytes and back.

use crate::error::BoxError;
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

    /// Decodes a value.
    ///
    /// # Errors
    /// Where `payload` is not such a value; the error says where.
    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError>;
}

/// JSON ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)) by serde_json: the default codec, and an argument
/// of handlers that take a payload without an event type.
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
        Ok(serde_json::to_vec(value)?.into())
    }

    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(payload)?)
    }
}

/// Whether a payload that says it is `stated` may be decoded as `expected`: the same essence, parameters aside.
pub(crate) fn same_media_type(stated: &str, expected: &str) -> bool {
    let essence = |media_type: &str| media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    stated == expected || essence(stated) == essence(expected)
}
