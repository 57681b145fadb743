//! Where a function stands. The compiler does not tell an attribute that it is inside of an `impl` block, where nothing
//! can be written beside a function; the file of the function does.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

/// What stands in place of the name while the source is read.
const MARK: &str = "__eventbus_here";

/// Whether a function is an associated function, as far as its file tells.
pub(super) fn is_in_impl(name: &Ident) -> bool {
    let span = name.span().unwrap();
    let Some(source) = span.local_file().and_then(|file| std::fs::read_to_string(file).ok()) else {
        return false;
    };
    marked(&source, &name.to_string(), span.line(), span.column())
        .and_then(|source| source.parse().ok())
        .is_some_and(|tokens| holds(tokens, false))
}

/// The source with the mark in place of the name at this line and column, both from 1. A line that is not indented is
/// in no block, and saves the reading.
fn marked(source: &str, name: &str, line: usize, column: usize) -> Option<String> {
    let before: usize = source.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let line = source.get(before..)?;
    let at = before + line.char_indices().nth(column.checked_sub(1)?)?.0;
    let rest = source[at..].strip_prefix(name)?;
    line.starts_with([' ', '\t']).then(|| format!("{}{MARK}{rest}", &source[..at]))
}

/// Whether the mark stands in the braces of an `impl`, and in none within them.
fn holds(tokens: TokenStream, in_impl: bool) -> bool {
    // The first word since the last block or `;`, which says what the next block is.
    let mut first: Option<Ident> = None;
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == MARK => return in_impl,
            TokenTree::Ident(word) if first.is_none() && word != "unsafe" => first = Some(word),
            TokenTree::Punct(punct) if punct.as_char() == ';' => first = None,
            TokenTree::Group(group) => {
                let is_block = group.delimiter() == Delimiter::Brace;
                if holds(group.stream(), is_block && first.as_ref().is_some_and(|word| word == "impl")) {
                    return true;
                }
                if is_block {
                    first = None;
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(source: &str) -> bool {
        let (line, text) =
            source.lines().enumerate().find(|(_, text)| text.contains("fn ship")).expect("it has one");
        let column = text.find("ship").expect("it has one") + 1;
        marked(source, "ship", line + 1, column).is_some_and(|source| holds(source.parse().unwrap(), false))
    }

    #[test]
    fn a_function_in_a_block_is_known() {
        assert!(is_found("mod a { fn all() {} }\n\nimpl Shop {\n    const A: u8 = 1;\n    fn ship() {}\n}"));
        assert!(is_found("#[a]\nunsafe impl<T> A for Shop<T> where T: B {\n    #[b] async fn ship() {}\n}"));
    }

    #[test]
    fn a_function_elsewhere_is_not() {
        for source in [
            "fn ship() {}\nimpl Shop { fn ship() {} }",
            "mod shop {\n    fn ship() {}\n}\nimpl Shop {}",
            "impl Shop {\n    fn outer() {\n        fn ship() {}\n    }\n}",
            "fn outer() -> impl Fn() {\n    fn ship() {}\n    ship\n}",
        ] {
            assert!(!is_found(source), "{source}");
        }
    }
}
