//! What a media type (RFC 2046) says of a payload: one answer for codecs, brokers and whoever shows events.

/// Whether a media type is JSON: `application/json`, `text/json` and what ends with `+json`, in any case; parameters
/// aside.
///
/// ```
/// # use eventbus_core::media_type::is_json;
/// assert!(is_json("application/vnd.shop.order+json; charset=utf-8") && !is_json("application/jsonl"));
/// ```
#[must_use]
pub const fn is_json(media_type: &str) -> bool {
    let Some((rest, last)) = essence(media_type).split_last_chunk::<5>() else { return false };
    !rest.is_empty()
        && matches!(last[0], b'/' | b'+')
        && last.last_chunk::<4>().unwrap().eq_ignore_ascii_case(b"json")
}

/// Whether a payload that says it is `stated` may be decoded as `expected`: both are JSON, or one media type, parameters
/// aside.
pub(crate) const fn fits(stated: &str, expected: &str) -> bool {
    essence(stated).eq_ignore_ascii_case(essence(expected)) || is_json(stated) && is_json(expected)
}

/// The media type without its parameters.
const fn essence(media_type: &str) -> &[u8] {
    let bytes = media_type.as_bytes();
    let mut end = 0;
    while end < bytes.len() && bytes[end] != b';' {
        end += 1;
    }
    match bytes.split_at_checked(end) {
        Some((essence, _)) => essence.trim_ascii(),
        None => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_by_its_media_type() {
        for json in [
            "application/json",
            "application/JSON; charset=utf-8",
            " text/json ;charset=utf-8",
            "application/order+json",
            "Application/Vnd.Shop+JSON",
        ] {
            assert!(is_json(json), "{json}");
        }
        for other in
            ["", "json", "/json", "text/plain", "application/jsonl", "application/x; a=/json", "a+json5"]
        {
            assert!(!is_json(other), "{other}");
        }
    }

    #[test]
    fn json_fits_json_and_other_types_fit_themselves() {
        for (stated, expected) in [
            ("application/vnd.shop+json", "application/json"),
            ("text/json; charset=utf-8", "application/json"),
            ("application/json", "application/order+json"),
            ("TEXT/csv; header=present", "text/csv"),
        ] {
            assert!(fits(stated, expected), "{stated}");
        }
        assert!(!fits("text/plain", "application/json") && !fits("application/json", "application/cbor"));
    }
}
