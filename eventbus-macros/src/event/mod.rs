//! `#[derive(Event)]`: attribute → model → expand.

mod attr;
mod expand;
mod model;

use crate::fallback::Errors;
use proc_macro2::TokenStream;
use syn::DeriveInput;

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let event = errors.take(syn::parse2::<DeriveInput>(item)).and_then(|item| {
        let attributes = attr::EventAttr::of(&item, &mut errors);
        let event = model::Event::new(&item, attributes, &mut errors);
        errors.take(event)
    });
    let mut tokens = event.map(|event| expand::expand(&event)).unwrap_or_default();
    tokens.extend(errors.finish(()).err().map(|error| error.to_compile_error()));
    tokens
}
