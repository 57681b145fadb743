//! Where generated code finds the facade: `::eventbus`, unless `crate = …` says otherwise.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::Path;

/// The path of the module for generated code.
pub(crate) fn private(facade: Option<&Path>) -> TokenStream {
    match facade {
        Some(path) => quote_spanned!(Span::call_site()=> #path::__private),
        None => quote!(::eventbus::__private),
    }
}
