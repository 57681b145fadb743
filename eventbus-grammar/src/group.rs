//! Names of groups and subscribers.

/// The longest name of a group, in bytes: with a topic and a prefix, every broker accepts it.
pub const MAX_GROUP: usize = 200;

/// Whether `name` can be the name of a group: 1 to [`MAX_GROUP`] characters of `[A-Za-z0-9_.-]`.
pub const fn is_group(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'_' | b'-' | b'.')) {
        at += 1;
    }
    at == bytes.len() && at > 0 && at <= MAX_GROUP
}

#[cfg(test)]
mod tests {
    use super::{MAX_GROUP, is_group};

    #[test]
    fn names_have_a_length_and_an_alphabet() {
        assert!(is_group("shop.send-mail_2") && is_group(&"x".repeat(MAX_GROUP)));
        for name in ["", "a b", "café", "a/b", &"x".repeat(MAX_GROUP + 1)] {
            assert!(!is_group(name), "{name}");
        }
    }
}
