//! What to say of a name that nothing has: which names there are, and which was meant, most likely.

use crate::counted::count;
use eventbus_grammar::{distance, is_near};
use std::collections::BTreeSet;

/// So many names are listed: the nearest, where there are more.
const LISTED: usize = 12;

/// How the sentence goes on that says that a name is not known.
///
/// ```
/// # use eventbus_core::choice::choice;
/// assert_eq!(choice("shpo", ["stock", "shop"]), "there are: `shop`, `stock`; did you mean \"shop\"?");
/// assert_eq!(choice("shop", []), "there is none");
/// ```
pub fn choice<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: BTreeSet<_> = known.into_iter().collect();
    if known.is_empty() {
        return "there is none".to_owned();
    }
    let mut listed: Vec<_> = known.iter().copied().collect();
    if listed.len() > LISTED {
        listed.sort_by_key(|known| distance(typed, known));
    }
    let more = match listed.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {} more", count(more)),
    };
    let names: Vec<_> = listed.iter().take(LISTED).map(|known| format!("`{known}`")).collect();
    format!("there are: {}{more}{}", names.join(", "), meant_name(typed, &known))
}

/// `; did you mean …?`, where some known name is near.
pub fn meant<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().filter(|known| is_near(typed, known));
    question(near.min_by_key(|known| distance(typed, known)))
}

/// What is called so in another package, or in other letters, is meant rather than what is near.
fn meant_name(typed: &str, known: &BTreeSet<&str>) -> String {
    let end = |known: &&str| known.rsplit_once('.').is_some_and(|(_, end)| end == typed);
    let same = known.iter().copied().find(|known| known.eq_ignore_ascii_case(typed) || end(known));
    if same.is_some() { question(same) } else { meant(typed, known.iter().copied()) }
}

fn question(meant: Option<&str>) -> String {
    meant.map(|known| format!("; did you mean \"{known}\"?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_the_nearest_are_listed() {
        let known: Vec<_> = (0..1_500).map(|number| format!("shop.group-{number}")).collect();
        let said = choice("shop.group-77x", known.iter().map(String::as_str));
        assert!(said.contains("`shop.group-77`") && said.contains(" and 1,488 more; did you mean"), "{said}");
        assert_eq!(said.matches('`').count(), 2 * LISTED, "{said}");
    }

    #[test]
    fn a_name_that_lacks_its_package_is_meant_by_its_end() {
        for typed in ["ship", "Shop.Ship", "shop.shp"] {
            let said = choice(typed, ["shop.ship", "shop.mail"]);
            assert!(said.ends_with("`shop.mail`, `shop.ship`; did you mean \"shop.ship\"?"), "{said}");
        }
        assert_eq!(choice("post", ["shop.ship"]), "there are: `shop.ship`");
    }
}
