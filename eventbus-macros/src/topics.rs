//! `topics!` declares a catalog of topics, and `publish!` publishes to one of them.

use crate::crate_path::{self, Facade};
use crate::{fallback::Errors, literal, nearest, spans};
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, Ident, LitStr, Path, Result, Token};

/// `extends shop_events; crate = bus; NAME = "topic", …`
struct Catalog {
    extends: Vec<Path>,
    facade: Option<Path>,
    topics: Vec<Declared>,
}

/// What may stand before the topics.
const WORDS: &[&str] = &["extends", "crate"];

struct Declared {
    attributes: Vec<Attribute>,
    name: Ident,
    topic: LitStr,
}

impl Parse for Catalog {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut extends, mut facade) = (Vec::new(), None);
        loop {
            if let Facade(Some(path)) = input.parse()? {
                facade = Some(path);
            } else if input.fork().parse::<Ident>().is_ok_and(|word| word == "extends")
                && !input.peek2(Token![=])
            {
                input.parse::<Ident>()?;
                extends.extend(Punctuated::<Path, Token![,]>::parse_separated_nonempty_with(
                    input,
                    Path::parse_mod_style,
                )?);
            } else if let Ok(word) = input.fork().parse::<Ident>()
                && !(input.peek2(Token![=]) && input.peek3(syn::LitStr))
                && nearest::is_word_of(&word, WORDS)
            {
                return Err(nearest::unknown(&word, WORDS));
            } else {
                break;
            }
            input.parse::<Token![;]>()?;
        }
        let topics = input.parse_terminated(Declared::parse, Token![,])?.into_iter().collect();
        Ok(Self { extends, facade, topics })
    }
}

impl Parse for Declared {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(Self { attributes, name, topic: input.parse()? })
    }
}

pub(crate) fn expand(catalog: TokenStream) -> TokenStream {
    let Catalog { extends, facade, topics } = match syn::parse2(catalog) {
        Ok(catalog) => catalog,
        Err(error) => return error.to_compile_error(),
    };
    let mut errors = Errors::default();
    for declared in &topics {
        errors.take(literal::check_topic(&declared.topic));
    }
    let errors = errors.finish(()).err().map(|error| error.to_compile_error());
    let private = crate_path::private(facade.as_ref());
    let constants = topics.iter().map(|Declared { attributes, name, topic }| {
        let documented = attributes.iter().any(|attribute| attribute.path().is_ident("doc"));
        let docs = (!documented).then(|| format!("The topic `{}`.", topic.value()));
        let docs = docs.map(|docs| quote!(#[doc = #docs]));
        quote!(#docs #(#attributes)* pub const #name: &str = #topic;)
    });
    let texts = topics.iter().map(|declared| &declared.topic);
    quote! {
        #errors
        #(#constants)*

        #[doc(hidden)]
        #[allow(unreachable_pub)]
        pub static __EVENTBUS_CATALOG_ENTRY: #private::Catalog = #private::Catalog {
            package: #private::env!("CARGO_PKG_NAME"),
            topics: &[#(#texts),*],
            extends: &[#(#extends::__EVENTBUS_CATALOG),*],
        };

        #[doc(hidden)]
        #[allow(unreachable_pub, dead_code)]
        pub const __EVENTBUS_CATALOG: &#private::Catalog = &__EVENTBUS_CATALOG_ENTRY;

        const _: () = {
            use #private as __p;
            __p::submit! { __p::Entry::Catalog(&__EVENTBUS_CATALOG_ENTRY) }
        };
    }
}

/// `publish!(bus, "topic", { json })`, with `crate = path;` before it where the facade has another name.
struct PublishCall {
    facade: Option<Path>,
    bus: Expr,
    topic: LitStr,
    value: TokenStream,
}

impl Parse for PublishCall {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let Facade(facade) = input.parse()?;
        if facade.is_some() {
            input.parse::<Token![;]>()?;
        } else if let Ok(word) = input.fork().parse::<Ident>()
            && input.peek2(Token![=])
            && !input.peek2(Token![==])
        {
            return Err(nearest::unknown(&word, &["crate"]));
        }
        let bus = input.parse()?;
        input.parse::<Token![,]>()?;
        if !input.peek(LitStr) {
            return Err(
                input.error("expected a topic literal; an event is published with `bus.publish(event)`")
            );
        }
        let topic = input.parse()?;
        input.parse::<Token![,]>()?;
        Ok(Self { facade, bus, topic, value: input.parse()? })
    }
}

pub(crate) fn expand_publish(call: TokenStream) -> TokenStream {
    let parsed =
        syn::parse2::<PublishCall>(call).and_then(|call| literal::check_topic(&call.topic).map(|()| call));
    let PublishCall { facade, bus, topic, value } = match parsed {
        Ok(call) => call,
        Err(error) => return error.to_compile_error(),
    };
    let private = crate_path::private(facade.as_ref());
    let span = spans::at(&topic);
    let catalog = crate_path::catalog();
    let check = quote_spanned!(span=> __p::check::catalog(#catalog, #topic, __p::None););
    quote! {{
        #[allow(unused_imports, unused_qualifications, non_upper_case_globals)]
        const _: () = {
            use #private as __p;
            const topic: () = { #check };
        };
        (#bus).publish_to(#topic, &#private::serde_json::json!(#value))
    }}
}
