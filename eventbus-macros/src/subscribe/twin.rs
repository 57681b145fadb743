//! The twin of a handler: a type of the function's name, which holds its subscriptions as constants.
//!
//! Functions and types have names of two kinds, so that both can be called `ship`; but so do modules and types have
//! names of one kind, and `use handlers::ship` brings both along. So the twin comes in by a glob import, which gives
//! way to a module of its name beside it, and where its name is that of the module that it stands in, it stays
//! in there: `pub use ship::ship` beside `mod ship` is a common layout.
//!
//! The module that the glob import names is called after the place of the function too: a glob import of the user's,
//! such as `use super::*`, may bring along that of another function of the same name.

use super::home::Home;
use super::{Args, Handler};
use crate::link;
use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use std::hash::{DefaultHasher, Hash, Hasher};
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
                    let visibility = (!Home::of(name).is_named_as(name)).then_some(visibility);
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
