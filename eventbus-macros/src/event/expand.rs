//! What `#[derive(Event)]` writes.

use super::attr::Field;
use super::model::Event;
use crate::topic::Topic;
use crate::{crate_path, spans};
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};

pub(crate) fn expand(event: &Event) -> TokenStream {
    let Event { name, version, schema, .. } = event;
    let private = crate_path::private(event.facade.as_ref());
    let at_name = spans::at(name);
    let (topic, topic_check) = match &event.topic {
        Some(Topic::Literal(topic)) => (quote!(#topic), None),
        None => (quote!(""), None),
        Some(Topic::Constant(value)) => {
            let span = spans::at_end(value);
            let constant = quote_spanned!(span=> const __TOPIC: &str = #value;);
            let check = quote_spanned!(span=> const _: () = __p::check::topic(__TOPIC););
            (quote!(__TOPIC), Some(quote!(#constant #check)))
        }
    };
    let codec = event.codec.as_ref().map_or_else(|| quote!(__p::Json), |codec| quote!(#codec));
    let key = event.key.as_ref().map(|Field(field)| {
        let span = spans::at(field);
        let key = quote_spanned!(span=> __p::check::Shown::key(&self.#field));
        quote!(fn key(&self) -> __p::Option<__p::Key> { __p::Some(#key) })
    });
    let subject = event.subject.as_ref().map(|Field(field)| {
        let span = spans::at(field);
        let subject = quote_spanned!(span=> __p::check::Shown::subject(&self.#field));
        quote!(fn subject(&self) -> __p::Option<__p::String> { __p::Some(#subject) })
    });
    let (text, line, keyed) = (name.to_string(), spans::line(name), event.key.is_some());
    let (decode, chain_check) = upcast(event);
    // The bounds of `Event` are checked here, one error each and at the type's name.
    let event_impl = quote_spanned! {at_name=>
        impl __p::Event for #name {
            const META: &'static __p::EventMeta = &__EVENTBUS_META;
            type Codec = #codec;

            fn __read_backs() -> &'static __p::ReadBacks {
                static __READ_BACKS: __p::ReadBacks = __p::ReadBacks::new();
                &__READ_BACKS
            }

            #key
            #subject
            #decode
        }
    };
    quote! {
        #[allow(unused_qualifications, non_upper_case_globals, clippy::all, clippy::pedantic, clippy::nursery)]
        const _: () = {
            use #private as __p;

            #topic_check
            #chain_check

            static __EVENTBUS_META: __p::EventMeta = __p::EventMeta {
                topic: #topic,
                name: #text,
                version: #version,
                keyed: #keyed,
                schema: #schema,
                package: __p::env!("CARGO_PKG_NAME"),
                file: __p::file!(),
                line: #line,
            };

            #event_impl

            // The bound is always met; that it is stated keeps a missing `Clone` from being told here again.
            #[diagnostic::do_not_recommend]
            impl __p::IntoEvent for #name
            where
                for<'__a> #name: __p::Event,
            {
                type Event = Self;

                fn into_event(self) -> __p::Arc<Self> {
                    __p::Arc::new(self)
                }
            }

            #[diagnostic::do_not_recommend]
            impl __p::FromDelivery<'_> for #name {
                const EVENT: __p::Option<&'static __p::EventMeta> = __p::Some(&__EVENTBUS_META);

                fn from_delivery(__delivery: &__p::Delivery) -> __p::Result<Self, __p::Outcome> {
                    __p::Ok(__delivery.owned_event::<Self>()?)
                }
            }

            #[diagnostic::do_not_recommend]
            impl __p::IntoOutcome for #name {
                const PUBLISHES: __p::Option<&'static __p::EventMeta> = __p::Some(&__EVENTBUS_META);

                fn into_outcome(self) -> __p::Outcome {
                    __p::Outcome::publish(self)
                }
            }

            const _: () = { __p::submit! { __p::Entry::Event(&__EVENTBUS_META, __p::read::<#name>) } };
        };
    }
}

/// How older versions are read, and the proof that none is left out.
fn upcast(event: &Event) -> (Option<TokenStream>, Option<TokenStream>) {
    let Some(old) = &event.upcast_from else { return (None, None) };
    let span = spans::at_type(old);
    let version = event.version;
    let upcast = quote_spanned!(span=> __p::check::Upcast::upcast(__old));
    let decode = quote! {
        fn decode(__version: u32, __content_type: &str, __payload: &[u8]) -> __p::Result<Self, __p::DecodeError> {
            if __version < #version {
                let __old = <#old as __p::Event>::decode(__version, __content_type, __payload)?;
                __p::Ok(#upcast)
            } else {
                __p::decode_current(__version, __content_type, __payload)
            }
        }
    };
    let check = quote_spanned!(span=> const upcast_chain: () = __p::check::upcast(&__EVENTBUS_META, <#old as __p::Event>::META););
    (Some(decode), Some(check))
}
