//! `#[subscribe]`: arguments → model → check → expand.

mod args;
mod check;
mod expand;
mod model;

pub(crate) use args::Args;
pub(crate) use check::fits;
pub(crate) use expand::{Place, registration};
pub(crate) use model::{Handler, conditions};

use crate::fallback::with_item;
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::{Attribute, Error, ItemFn, Result};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let Ok(mut function) = syn::parse2::<ItemFn>(item.clone()) else {
        return with_item(item.clone(), &check::not_a_function(item));
    };
    // This expansion takes all attributes of the function, so that one twin holds all its subscriptions.
    let others: Vec<_> = function.attrs.extract_if(.., |other| is_subscribe(other)).collect();
    match try_expand(attribute, &others, &mut function) {
        Ok(registration) => quote!(#function #registration),
        Err(error) => with_item(function.into_token_stream(), &error),
    }
}

fn try_expand(attribute: TokenStream, others: &[Attribute], function: &mut ItemFn) -> Result<TokenStream> {
    let mut errors = crate::fallback::Errors::default();
    let mut all = vec![errors.take(syn::parse2::<Args>(attribute))];
    all.extend(others.iter().map(|other| errors.take(Args::of(other))));
    let handler = errors.take(Handler::new(&function.sig, &function.attrs, &function.vis, None));
    let all: Vec<Args> = all.into_iter().flatten().collect();
    let Some(handler) = handler else { return errors.finish(TokenStream::new()) };
    for args in &all {
        errors.take(fits(args, &handler));
    }
    errors.finish(())?;
    document(&mut function.attrs, &all, &handler);
    Ok(registration(&all, &handler, &Place::Function))
}

/// Whether an attribute is another `#[subscribe]`, by whatever path it is named.
pub(crate) fn is_subscribe(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "subscribe")
}

/// Adds to the function's documentation what it listens on.
pub(crate) fn document(attributes: &mut Vec<Attribute>, all: &[Args], handler: &Handler) {
    for args in all {
        let topic = match (&args.topic, &handler.event_hint) {
            (Some(topic), _) => topic.describe(),
            (None, Some(event)) => format!("the topic of `{event}`"),
            (None, None) => continue,
        };
        let line = format!("*Subscribed to* {topic}.");
        attributes.push(syn::parse_quote!(#[doc = ""]));
        attributes.push(syn::parse_quote!(#[doc = #line]));
    }
}

/// An error at a name.
fn at_name(name: &Ident, message: &str) -> Error {
    Error::new(name.span(), message)
}
