//! The macros of eventbus; applications use them through `eventbus`, where they are documented.

#![forbid(unsafe_code)]

mod conditions;
mod crate_path;
mod event;
mod fallback;
mod link;
mod literal;
mod main_fn;
mod nearest;
mod spans;
mod subscribe;
mod subscriber;
mod tokens;
mod topic;
mod topics;

use proc_macro::TokenStream;
use tokens::written;

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro_attribute]
pub fn subscribe(attribute: TokenStream, item: TokenStream) -> TokenStream {
    subscribe::expand(written(attribute.into()), item.into()).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro_attribute]
pub fn subscriber(attribute: TokenStream, item: TokenStream) -> TokenStream {
    subscriber::expand(written(attribute.into()), item.into()).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro_derive(Event, attributes(event))]
pub fn event(item: TokenStream) -> TokenStream {
    event::expand(written(item.into())).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro]
pub fn topics(catalog: TokenStream) -> TokenStream {
    topics::expand(written(catalog.into())).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro]
pub fn publish(call: TokenStream) -> TokenStream {
    topics::expand_publish(written(call.into())).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro]
pub fn link_all(input: TokenStream) -> TokenStream {
    link::expand(input.into()).into()
}

#[allow(missing_docs, reason = "documented where the facade re-exports it")]
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    main_fn::expand(written(attribute.into()), item.into()).into()
}
