//! `#[subscribe]`: arguments → model → check → expand.

mod args;
mod check;
mod expand;
mod home;
mod model;
mod twin;

pub(crate) use args::Args;
pub(crate) use check::fits;
pub(crate) use expand::registration;
pub(crate) use model::Handler;

use crate::conditions::{self, Conditions};
use crate::fallback::with_item;
use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::{Attribute, Error, ItemFn, Meta, Result};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let Ok(mut function) = syn::parse2::<ItemFn>(item.clone()) else {
        return with_item(item.clone(), &check::not_a_function(item));
    };
    // This expansion takes all attributes of the function, so that one twin holds all its subscriptions.
    let others = conditions::extract(&mut function.attrs, is_subscribe);
    match try_expand(attribute, others, &mut function) {
        Ok(registration) => quote!(#function #registration),
        Err(error) => with_item(function.into_token_stream(), &error),
    }
}

fn try_expand(
    attribute: TokenStream,
    others: Vec<(Conditions, Meta)>,
    function: &mut ItemFn,
) -> Result<TokenStream> {
    let mut errors = crate::fallback::Errors::default();
    let mut all = vec![errors.take(syn::parse2::<Args>(attribute))];
    all.extend(others.into_iter().map(|(when, other)| errors.take(Args::of(when, &other))));
    let handler = errors.take(Handler::new(&function.sig, &function.attrs, &function.vis, None));
    let all: Vec<Args> = all.into_iter().flatten().collect();
    let Some(handler) = handler else { return errors.finish(TokenStream::new()) };
    for args in &all {
        errors.take(fits(args, &handler));
    }
    if let Some(second) = all.iter().filter_map(|args| args.twin.as_ref()).nth(1) {
        errors.push(at_name(
            second,
            "one type holds all subscriptions of a function; leave out the second `as`",
        ));
    }
    errors.finish(())?;
    document(&mut function.attrs, &all, &handler);
    Ok(registration(&all, &handler))
}

/// Whether an attribute is another `#[subscribe]`, by whatever path it is named.
pub(crate) fn is_subscribe(attribute: &Meta) -> bool {
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
