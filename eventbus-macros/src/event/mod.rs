//! `#[derive(Event)]`: attribute → model → expand.

mod attr;
mod expand;
mod model;

use crate::fallback::Errors;
use proc_macro2::TokenStream;
use syn::DeriveInput;

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let result = syn::parse2::<DeriveInput>(item).and_then(|item| {
        let mut errors = Errors::default();
        let attributes = errors.take(attr::EventAttr::of(&item));
        let model = attributes.and_then(|attributes| errors.take(model::Event::new(&item, attributes)));
        errors.finish(model)
    });
    match result {
        Ok(Some(event)) => expand::expand(&event),
        Ok(None) => TokenStream::new(),
        Err(error) => error.to_compile_error(),
    }
}
