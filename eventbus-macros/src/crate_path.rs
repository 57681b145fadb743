//! Where generated code finds the facade: `::eventbus`, unless `crate = …` says otherwise.

use crate::nearest;
use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Ident, Path, Result, Token};

/// The path of the module for generated code.
pub(crate) fn private(facade: Option<&Path>) -> TokenStream {
    match facade {
        Some(path) => quote_spanned!(Span::call_site()=> #path::__private),
        None => quote!(::eventbus::__private),
    }
}

/// The catalog of the user's crate: the one in its root, or else one that knows all topics. Nothing but its name is
/// looked up where the root's names are.
pub(crate) fn catalog() -> TokenStream {
    quote!({
        use __p::no_catalog::*;
        {
            use crate::*;
            __EVENTBUS_CATALOG
        }
    })
}

/// `crate = path`, or nothing.
pub(crate) struct Facade(pub(crate) Option<Path>);

impl Parse for Facade {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if !input.peek(Token![crate]) || !input.peek2(Token![=]) {
            return Ok(Self(None));
        }
        input.parse::<Token![crate]>()?;
        input.parse::<Token![=]>()?;
        input.call(Path::parse_mod_style).map(|path| Self(Some(path)))
    }
}

/// All that an attribute takes: `crate = path`, or nothing.
pub(crate) fn only(attribute: TokenStream, message: &str) -> Result<Option<Path>> {
    let parse = |input: ParseStream<'_>| match (input.parse::<Facade>()?, input.is_empty()) {
        (Facade(facade), true) => Ok(facade),
        (_, false) => match input.fork().call(Ident::parse_any) {
            Ok(name) if name != "crate" && nearest::is_word_of(&name, &["crate"]) => {
                Err(nearest::unknown(&name, &["crate"]))
            }
            _ => Err(input.error(message)),
        },
    };
    parse.parse2(attribute)
}
