//! Commands in messages, ready to be pasted: with the name that the program was called by, and the address of its broker.

use std::sync::OnceLock;

/// The command line that the program itself has.
static OWN: OnceLock<Own> = OnceLock::new();

struct Own {
    called: String,
    handlers: bool,
}

/// The program has a command line, and its verbs are called with these words before them; with `handlers`, they reach the
/// handlers of the program.
pub fn is_called<S: AsRef<str>>(words: &[S], handlers: bool) {
    // A program has one; a second one would be called the same.
    let _ = OWN.set(Own { called: sentence(words), handlers });
}

/// A verb with its arguments, as it is to be said in a message: of the program's own command line, or else of the binary
/// `eventbus`. A broker without an address is reached by the program alone, wherever that has its verbs.
pub fn command(address: Option<&str>, verb: &[&str]) -> String {
    let called = OWN.get().map_or("eventbus", |own| &own.called);
    line(called, address, verb)
}

/// The same for a verb that needs the handlers of the program; none, where the program has no command line.
pub fn command_with_handlers(address: Option<&str>, verb: &[&str]) -> Option<String> {
    let own = OWN.get().filter(|own| own.handlers)?;
    Some(line(&own.called, address, verb))
}

/// Whether the program is a command line only, as the binary `eventbus` is, and has no handlers.
pub(crate) fn is_all() -> bool {
    OWN.get().is_some_and(|own| !own.handlers)
}

fn line(called: &str, address: Option<&str>, verb: &[&str]) -> String {
    let verb = sentence(verb);
    match address {
        Some(address) if may_be_secret(address) => format!("`{called} --url \"$EVENTBUS_URL\" {verb}`"),
        Some(address) => format!("`{called} --url {} {verb}`", quoted(address)),
        None => format!("`{verb}` on the command line"),
    }
}

/// Whether an address may hold a password, a token or a key.
fn may_be_secret(address: &str) -> bool {
    let Some((_, rest)) = address.split_once("://") else { return false };
    let options = rest.split_once('?').map_or("", |(_, options)| options);
    let words = ["password", "token", "key", "secret", "credentials"];
    rest.contains('@') || words.iter().any(|word| options.contains(word))
}

/// Words as a shell takes them.
fn sentence<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./:@%+=,".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted() {
        let verb = ["groups", "drop", "mail", "--pattern", "order.>"];
        assert_eq!(
            line("./shop", Some("sqlite:/srv/shop.db"), &verb),
            "`./shop --url sqlite:/srv/shop.db groups drop mail --pattern 'order.>'`"
        );
        let spaces = line("eventbus", Some("sqlite:/my logs/it's.db"), &["groups", "list"]);
        assert_eq!(spaces, r"`eventbus --url 'sqlite:/my logs/it'\''s.db' groups list`");
        assert_eq!(line("eventbus", None, &["groups", "list"]), "`groups list` on the command line");
        assert_eq!(
            line("eventbus", Some("nats://host?stream=SHOP"), &["tail"]),
            "`eventbus --url 'nats://host?stream=SHOP' tail`"
        );
    }

    #[test]
    fn a_command_shows_no_secret() {
        for address in ["nats://ada:hunter2@host", "nats://hunter2@host", "nats://host?token=hunter2"] {
            let said = line("eventbus", Some(address), &["tail"]);
            assert_eq!(said, "`eventbus --url \"$EVENTBUS_URL\" tail`");
        }
    }
}
