//! The twin of a handler: a type of the function's name, which holds its subscriptions as constants.
//!
//! Functions and types have names of two kinds, so that both can be called `ship`; but so do modules and types have
//! names of one kind, and `use handlers::ship` brings both along. So the twin comes in by a glob import, which gives
//! way to a module of its name beside it, and where its name is that of the module that it stands in, it stays
//! in there: `pub use ship::ship` beside `mod ship` is a common layout.
//!
//! The module that the glob import names is called after the place of the function too: a glob import of the user's,
//! such as `use super::*`, may bring along that of another function of the same name.

use super::{Args, Handler};
use crate::link;
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use quote::{format_ident, quote};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use syn::ext::IdentExt;

/// Where the constants of a handler go.
pub(super) struct Twin {
    /// The type, where it is not one of the user's.
    pub(super) declaration: TokenStream,
    /// The path of the type.
    pub(super) owner: TokenStream,
    /// The name of the constant for one subscription, and of that for all.
    pub(super) one: Ident,
    pub(super) many: Ident,
}

impl Twin {
    pub(super) fn of(all: &[Args], handler: &Handler) -> Self {
        if let Some(receiver) = &handler.receiver {
            let upper = handler.name.unraw().to_string().to_uppercase();
            return Self {
                declaration: TokenStream::new(),
                owner: quote!(#receiver),
                one: format_ident!("{upper}_SUBSCRIBER"),
                many: format_ident!("{upper}_SUBSCRIBERS"),
            };
        }
        let (conditions, visibility, name) = (&handler.conditions, &handler.visibility, &handler.name);
        let docs = format!("The subscription of the function `{name}`.");
        let room = format_ident!("__eventbus_{}_{:x}", name.unraw(), place(name));
        let (declaration, owner) = match all.iter().find_map(|args| args.twin.as_ref()) {
            Some(named) => (
                quote! {
                    #conditions
                    #[doc = #docs]
                    #[allow(non_camel_case_types, dead_code)]
                    #visibility struct #named {}
                },
                quote!(#named),
            ),
            None => {
                let brought_in = (!is_taken(name)).then(|| {
                    let visibility = (!is_module_of_its_name(name)).then_some(visibility);
                    quote! {
                        #conditions
                        #[allow(unused_imports, hidden_glob_reexports)]
                        #visibility use #room::*;
                    }
                });
                let twin = quote! {
                    #conditions
                    #[doc(hidden)]
                    #[allow(non_snake_case, non_camel_case_types, unreachable_pub, dead_code)]
                    mod #room {
                        #[doc = #docs]
                        pub struct #name {}
                    }
                    #brought_in
                };
                (twin, quote!(#room::#name))
            }
        };
        Self { declaration, owner, one: format_ident!("SUBSCRIBER"), many: format_ident!("SUBSCRIBERS") }
    }
}

/// A number for the place of a name. Of what one macro writes several times, all has one line and column; the text of a
/// span tells that apart.
fn place(name: &Ident) -> u64 {
    let span = name.span().unwrap();
    let mut hasher = DefaultHasher::new();
    (format!("{span:?}"), span.line(), span.column()).hash(&mut hasher);
    hasher.finish()
}

/// Whether every module has something of this name, which a twin would hide: a crate, or a primitive type.
fn is_taken(name: &Ident) -> bool {
    const EVERYWHERE: &[&str] = &[
        "alloc", "core", "std", "bool", "char", "str", "f32", "f64", "i8", "i16", "i32", "i64", "i128",
        "isize", "u8", "u16", "u32", "u64", "u128", "usize",
    ];
    let name = name.unraw().to_string();
    EVERYWHERE.contains(&&*name) || link::crates(std::env::args()).any(|known| known == name)
}

/// Whether the function stands in a module of its own name. The compiler tells a macro nothing of where it is called,
/// but the file: the module is that of the file, or it is written in there.
fn is_module_of_its_name(name: &Ident) -> bool {
    let Some(file) = name.span().unwrap().local_file() else { return false };
    let name = name.unraw().to_string();
    is_file_of(&file, &name)
        || std::fs::read_to_string(&file).is_ok_and(|source| is_written_in(&source, &name))
}

/// Whether a file is a module, by its path.
fn is_file_of(file: &Path, module: &str) -> bool {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    match stem {
        Some("mod") => file.parent().and_then(Path::file_name).is_some_and(|folder| folder == module),
        _ => stem == Some(module),
    }
}

/// Whether some `mod name { … fn name … }` stands in a source.
fn is_written_in(source: &str, name: &str) -> bool {
    let mentions = |raw: &str| source.contains(&format!("mod {raw}{name}"));
    if !mentions("") && !mentions("r#") {
        return false;
    }
    source.parse().is_ok_and(|tokens| holds(tokens, name, false))
}

/// Looks for the function in the module, and for the module in others.
fn holds(tokens: TokenStream, name: &str, inside: bool) -> bool {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |token: Option<&TokenTree>, word: &str| matches!(token, Some(TokenTree::Ident(ident)) if ident.unraw() == word);
    let declares = |at: usize, keyword: &str| is(tokens.get(at), keyword) && is(tokens.get(at + 1), name);
    if inside && (0..tokens.len()).any(|at| declares(at, "fn")) {
        return true;
    }
    tokens.iter().enumerate().any(|(at, token)| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
            holds(group.stream(), name, at >= 2 && declares(at - 2, "mod"))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_its_file() {
        for file in ["src/ship.rs", "src/handlers/ship.rs", "src/ship/mod.rs"] {
            assert!(is_file_of(Path::new(file), "ship"), "{file}");
        }
        for file in ["src/ships.rs", "ship/src/lib.rs", "src/mod.rs", "mod.rs"] {
            assert!(!is_file_of(Path::new(file), "ship"), "{file}");
        }
    }

    #[test]
    fn a_module_is_known_where_it_is_written() {
        for source in [
            "mod ship { #[subscribe] pub async fn ship(order: &Placed) {} }",
            "pub(crate) mod r#type { fn r#type() {} }  mod outer { mod ship { use a::b; async fn ship() {} } }",
        ] {
            assert!(is_written_in(source, "ship") || is_written_in(source, "type"), "{source}");
        }
        for source in [
            "mod ship; fn ship() {}",
            "mod ship {} fn ship() {}",
            "mod ship { mod inner { fn ship() {} } }",
            "mod ships { fn ship() {} }",
            "/* mod ship { */ fn ship() {}",
            "mod ship { unclosed fn ship()",
        ] {
            assert!(!is_written_in(source, "ship"), "{source}");
        }
    }
}
