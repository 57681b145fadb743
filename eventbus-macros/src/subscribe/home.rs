//! Where a function stands. The compiler tells an attribute nothing of what it is in; the file of the function does.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use std::path::Path;
use syn::ext::IdentExt;

/// What stands in place of the name while the source is read.
const MARK: &str = "__eventbus_here";

/// What a function stands in, as far as its file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// An `impl` block, where nothing can be written beside a function.
    Impl,
    /// The module of this name.
    Module(String),
    /// Another block, such as that of a function.
    Elsewhere,
}

impl Home {
    pub(super) fn of(name: &Ident) -> Self {
        let span = name.span().unwrap();
        let Some(file) = span.local_file() else { return Self::Elsewhere };
        let of_file = Self::Module(module_of(&file));
        match std::fs::read_to_string(&file) {
            Ok(source) => within(&source, &name.to_string(), (span.line(), span.column()), of_file),
            Err(_) => of_file,
        }
    }

    /// Whether it is the module of the function's own name.
    pub(super) fn is_named_as(&self, name: &Ident) -> bool {
        matches!(self, Self::Module(module) if name.unraw() == module.as_str())
    }
}

/// The module that a file is, by its path.
fn module_of(file: &Path) -> String {
    let stem = match file.file_stem() {
        Some(stem) if stem == "mod" => file.parent().and_then(Path::file_name),
        stem => stem,
    };
    stem.unwrap_or_default().to_string_lossy().into_owned()
}

/// What the name at this line and column, both from 1, stands in within a source that is `of_file`.
fn within(source: &str, name: &str, place: (usize, usize), of_file: Home) -> Home {
    let Some(source) = marked(source, name, place) else { return of_file };
    let found = source.parse().ok().and_then(|tokens| find(tokens, &of_file));
    found.unwrap_or(of_file)
}

/// The source with the mark in place of the name. A function that is in a block is indented, or stands in the line that
/// begins the block; of any other it is clear where it stands, unless a module of its name is in the file.
fn marked(source: &str, name: &str, (line, column): (usize, usize)) -> Option<String> {
    let before: usize = source.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let line = source.get(before..)?;
    let (indent, _) = line.char_indices().nth(column.checked_sub(1)?)?;
    let (start, rest) = line.split_at(indent);
    let rest = rest.strip_prefix(name)?;
    let may_be_in_a_block =
        start.starts_with([' ', '\t']) || start.contains('{') || source.contains(&format!("mod {name}"));
    may_be_in_a_block.then(|| format!("{}{start}{MARK}{rest}", &source[..before]))
}

/// What the mark stands in, if it is among these tokens, which stand in `here`.
fn find(tokens: TokenStream, here: &Home) -> Option<Home> {
    // The tokens since the last block or `;`, which say what the next block is.
    let mut header: Vec<TokenTree> = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == MARK => return Some(here.clone()),
            TokenTree::Punct(punct) if punct.as_char() == ';' => header.clear(),
            TokenTree::Group(group) => {
                let is_block = group.delimiter() == Delimiter::Brace;
                let inside = opened(&header, is_block, here);
                if let Some(home) = find(group.stream(), &inside) {
                    return Some(home);
                }
                if is_block {
                    header.clear();
                } else {
                    header.push(group.into());
                }
            }
            token => header.push(token),
        }
    }
    None
}

/// What a group is that stands behind these tokens.
fn opened(header: &[TokenTree], is_block: bool, here: &Home) -> Home {
    let words = header.iter().filter_map(|token| match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    });
    match header {
        // What a macro is called with stands where the call does.
        [.., TokenTree::Punct(punct)] if punct.as_char() == '!' => here.clone(),
        [.., TokenTree::Ident(word), TokenTree::Ident(name)] if is_block && word == "mod" => {
            Home::Module(name.unraw().to_string())
        }
        _ if is_block && words.clone().find(|word| word != "unsafe").is_some_and(|word| word == "impl") => {
            Home::Impl
        }
        _ => Home::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the first `fn ship` of a source stands in, in a file that is the module `file`.
    fn home(source: &str) -> Home {
        let is_here = |text: &str| text.contains("fn ship") || text.contains("fn r#ship");
        let (line, text) = source.lines().enumerate().find(|(_, text)| is_here(text)).expect("it has one");
        let name = if text.contains("fn r#ship") { "r#ship" } else { "ship" };
        let column = text.find(&format!("fn {name}")).expect("it has one") + 4;
        within(source, name, (line + 1, column), Home::Module("file".to_owned()))
    }

    #[test]
    fn a_function_in_an_impl_is_known() {
        for source in [
            "mod a { fn all() {} }\n\nimpl Shop {\n    const A: u8 = 1;\n    fn ship() {}\n}",
            "#[a]\nunsafe impl<T> A for Shop<T> where T: B {\n    #[b] async fn ship() {}\n}",
            "impl Shop { fn ship() {} }",
            "mod ship {\n    impl Shop {\n        fn ship() {}\n    }\n}",
            "impl Shop {\n    with! {\n        fn ship() {}\n    }\n}",
        ] {
            assert_eq!(home(source), Home::Impl, "{source}");
        }
    }

    #[test]
    fn a_function_in_a_module_is_known() {
        for (source, module) in [
            ("mod ship { #[subscribe] pub async fn ship(order: &Placed) {} }", "ship"),
            ("pub(crate) mod r#type {\n    fn ship() {}\n}", "type"),
            ("mod outer { mod ship { use a::b; async fn r#ship() {} } }", "ship"),
            ("mod ship {\nfn ship() {}\n}", "ship"),
            ("mod ship {\n    with! {\n        fn ship() {}\n    }\n}", "ship"),
            ("mod ship { mod inner { fn ship() {} } }", "inner"),
            ("fn ship() {}\nimpl Shop { fn ship() {} }", "file"),
            ("mod ship;\nfn ship() {}", "file"),
            ("mod ship {}\nfn ship() {}", "file"),
            ("/* mod ship { */ fn ship() {}", "file"),
            ("mod ship { unclosed fn ship()", "file"),
            ("with! {\n    fn ship() {}\n}", "file"),
        ] {
            assert_eq!(home(source), Home::Module(module.to_owned()), "{source}");
        }
    }

    #[test]
    fn a_function_in_another_block_is_elsewhere() {
        for source in [
            "impl Shop {\n    fn outer() {\n        fn ship() {}\n    }\n}",
            "fn outer() -> impl Fn() {\n    fn ship() {}\n    ship\n}",
            "mod ship {\n    fn outer() {\n        fn ship() {}\n    }\n}",
        ] {
            assert_eq!(home(source), Home::Elsewhere, "{source}");
        }
    }

    #[test]
    fn a_module_is_known_by_its_file() {
        for (file, module) in [
            ("src/ship.rs", "ship"),
            ("src/handlers/ship.rs", "ship"),
            ("src/ship/mod.rs", "ship"),
            ("src/ships.rs", "ships"),
            ("ship/src/lib.rs", "lib"),
            ("src/mod.rs", "src"),
            ("mod.rs", ""),
        ] {
            assert_eq!(module_of(Path::new(file)), module, "{file}");
        }
    }
}
