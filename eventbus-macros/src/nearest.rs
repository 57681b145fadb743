//! "Did you mean" for the words of the macros' own grammar.

/// ``; did you mean `retries`?``, where a known word is near.
pub(crate) fn hint(typed: &str, known: &[&str]) -> String {
    known
        .iter()
        .filter(|known| eventbus_grammar::is_near(typed, known))
        .min_by_key(|known| eventbus_grammar::distance(typed, known))
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}
