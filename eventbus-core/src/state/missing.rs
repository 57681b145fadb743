//! What to say of a state that is missing: which of those that were given was meant, by the names of their types.

use eventbus_grammar::{distance, is_near};

/// What to do where the state `wanted` is missing and these were given.
pub(super) fn remedy(wanted: &str, given: &[&str]) -> String {
    if let Some(relation) = given.iter().find_map(|given| relation(wanted, given)) {
        return relation;
    }
    let near = |given: &&&str| is_near(&short(wanted), &short(given));
    let meant = given.iter().filter(near).min_by_key(|given| distance(&short(wanted), &short(given)));
    let hint = match (meant, given) {
        (Some(meant), _) => format!("; did you mean `State<{}>`, which it has?", short(meant)),
        (None, []) => String::new(),
        (None, _) => {
            let given: Vec<_> = given.iter().map(|given| format!("`{given}`")).collect();
            format!("; it has: {}", given.join(", "))
        }
    };
    format!("give it to the bus with `.state(…)`{hint}")
}

/// How the type that was given is another form of the one that is wanted, and what to write instead.
pub(crate) fn relation(wanted: &str, given: &str) -> Option<String> {
    let (taken, had) = (short(wanted), short(given));
    if wanted == given {
        let twice = "the bus has another type of this very name, so two versions of its crate are in the program, or the \
                     type is declared twice (`cargo tree -d` lists crates that are there twice)";
        return Some(twice.to_owned());
    }
    if let Some((STATE, inner)) = wrapped(wanted) {
        return (inner == given).then(|| format!("a `State<…>` is enough: take `State<{}>`", short(inner)));
    }
    match wrapped(given) {
        Some(("alloc::sync::Arc", inner)) if inner == wanted => {
            return Some(format!(
                "the bus was given `{had}`, and `State<{taken}>` shares a plain `{taken}` already: write \
                 `.shared_state(…)` for what is in an `Arc`, or `.state(…)` with the value itself"
            ));
        }
        Some((_, inner)) if inner == wanted => {
            return Some(format!(
                "the bus was given `{had}`: write `.state(…)` with the plain `{taken}`, which `State` shares, or take \
                 `State<{had}>`"
            ));
        }
        _ => {}
    }
    match wrapped(wanted) {
        Some((wrapper, inner)) if inner == given => {
            let shares = if wrapper == "alloc::sync::Arc" { ", which `State` shares already" } else { "" };
            return Some(format!(
                "the bus was given a plain `{had}`: take `State<{had}>`{shares}, or give it a `{taken}`"
            ));
        }
        _ => {}
    }
    (taken == had).then(|| {
        format!(
            "the bus was given `{given}`, another type of that name: look at the `use` of both (where both are of one \
             crate, `cargo tree -d` tells whether two versions of it are in the program)"
        )
    })
}

const STATE: &str = "eventbus_core::state::State";

/// What a type is around another one: the path of the wrapper, and the first type in it.
fn wrapped(name: &str) -> Option<(&str, &str)> {
    if let Some(inner) = name.strip_prefix('&') {
        return Some(("&", inner.strip_prefix("mut ").unwrap_or(inner)));
    }
    let (wrapper, inside) = name.strip_suffix('>')?.split_once('<')?;
    let mut depth = 0;
    let ends = |letter: char| {
        match letter {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    };
    Some((wrapper, inside.split(ends).next()?))
}

/// The name of a type without the paths in it.
fn short(name: &str) -> String {
    let (mut short, mut path) = (String::new(), 0);
    for letter in name.chars() {
        if letter == ':' {
            short.truncate(path);
            continue;
        }
        short.push(letter);
        if !letter.is_alphanumeric() && letter != '_' {
            path = short.len();
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_given_in_another_form_is_named_with_what_to_write() {
        for (wanted, given, words) in [
            (
                "shop::Mailer",
                "alloc::sync::Arc<shop::Mailer>",
                "given `Arc<Mailer>`, and `State<Mailer>` shares a plain",
            ),
            ("shop::Mailer", "alloc::sync::Arc<shop::Mailer>", "`.shared_state(…)`"),
            (
                "shop::Mailer",
                "alloc::boxed::Box<shop::Mailer>",
                "given `Box<Mailer>`: write `.state(…)` with the plain `Mailer`",
            ),
            ("shop::Mailer", "&shop::Mailer", "or take `State<&Mailer>`"),
            ("shop::Mailer", "eventbus_core::state::State<shop::Mailer>", "given `State<Mailer>`: write"),
            ("shop::Map", "std::sync::Mutex<shop::Map>", "take `State<Mutex<Map>>`"),
            ("a::Map<b::K, c::V>", "alloc::sync::Arc<a::Map<b::K, c::V>>", "plain `Map<K, V>`"),
            ("eventbus_core::state::State<shop::Mailer>", "shop::Mailer", "is enough: take `State<Mailer>`"),
            (
                "alloc::sync::Arc<shop::Mailer>",
                "shop::Mailer",
                "take `State<Mailer>`, which `State` shares already",
            ),
            (
                "std::sync::Mutex<shop::Map>",
                "shop::Map",
                "a plain `Map`: take `State<Map>`, or give it a `Mutex<Map>`",
            ),
            ("shop::Mailer", "post::Mailer", "given `post::Mailer`, another type of that name"),
            ("shop::Mailer", "shop::Mailer", "two versions of its crate"),
            ("shop::Mailer", "shop::Mialer", "did you mean `State<Mialer>`"),
            ("shop::Mailer", "u32", "`.state(…)`; it has: `u32`"),
        ] {
            let said = remedy(wanted, &[given]);
            assert!(said.contains(words), "{wanted}, {given}: {said}");
        }
        assert_eq!(remedy("shop::Mailer", &[]), "give it to the bus with `.state(…)`");
    }

    #[test]
    fn the_state_that_was_meant_is_named_whatever_stands_beside_it() {
        let said = remedy("shop::Mailer", &["a::Pool", "alloc::sync::Arc<shop::Mailer>", "shop::Mailor"]);
        assert!(said.contains("given `Arc<Mailer>`"), "{said}");
    }
}
