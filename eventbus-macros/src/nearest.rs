//! "Did you mean" for the words of the macros' own grammar.

use syn::{Error, Ident};

/// ``; did you mean `retries`?``, where a known word is near: a slip away, or grown from the same stem.
pub(crate) fn hint(typed: &str, known: &[&str]) -> String {
    let slip = known
        .iter()
        .filter(|known| eventbus_grammar::is_near(typed, known))
        .min_by_key(|known| eventbus_grammar::distance(typed, known));
    let nearest = slip.or_else(|| known.iter().find(|known| is_of_one_stem(typed, known)));
    nearest.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}

/// `retry` and `retries`, `max_retries` and `retries`.
fn is_of_one_stem(typed: &str, known: &str) -> bool {
    const STEM: usize = 4;
    let in_common = typed.chars().zip(known.chars()).take_while(|(left, right)| left == right).count();
    in_common >= STEM || (known.len() >= STEM && typed.contains(known))
}

/// What to say of an option that there is not.
pub(crate) fn unknown(typed: &Ident, known: &[&str]) -> Error {
    let hint = hint(&typed.to_string(), known);
    let hint = match known {
        [only] if hint.is_empty() => format!("; the only one is `{only}`"),
        _ if hint.is_empty() => format!("; there are: {}", known.join(", ")),
        _ => hint,
    };
    Error::new(typed.span(), format!("unknown option `{typed}`{hint}"))
}

/// Whether a name is one of these words, or a slip of one: names of constants are in capitals.
pub(crate) fn is_word_of(typed: &Ident, known: &[&str]) -> bool {
    let typed = typed.to_string();
    known
        .iter()
        .any(|known| *known == typed || (typed.to_lowercase() == typed && !hint(&typed, &[known]).is_empty()))
}
