//! What `#[subscribe]` writes: constant data, and one straight-line function.

use super::args::Args;
use super::model::{Argument, Handler};
use super::twin::Twin;
use crate::topic::Topic;
use crate::{crate_path, spans};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::Type;
use syn::ext::IdentExt;

/// Everything that makes a handler known.
pub(crate) fn registration(all: &[Args], handler: &Handler) -> TokenStream {
    let conditions = &handler.conditions;
    let facade = all.iter().find_map(|args| args.facade.as_ref());
    let private = crate_path::private(facade);
    let statics: Vec<_> =
        (0..all.len()).map(|number| format_ident!("__EVENTBUS_SUBSCRIBER_{number}")).collect();
    let subscribers = all.iter().zip(&statics).enumerate().map(|(number, (args, name))| {
        let adapter = format_ident!("__Adapter{number}");
        let topic = Pattern::of(args, number);
        let subscriber = subscriber(args, &topic, handler, &adapter);
        let when = &args.conditions;
        let items = topic.constant.clone().into_iter().chain([
            checks(args, &topic, handler, number),
            quote!(struct #adapter;),
            adapter_impl(args, handler, &adapter),
            quote!(static #name: __p::Subscriber = #subscriber;),
            quote!(
                const _: () = {
                    __p::submit! { __p::Entry::Subscriber(&#name) }
                };
            ),
        ]);
        quote!(#(#when #items)*)
    });
    let Twin { declaration, owner, one, many } = Twin::of(all, handler);
    let constants = constants(all, &statics, &one, &many);
    quote! {
        #declaration
        #conditions
        #[allow(
            dead_code,
            deprecated,
            non_camel_case_types,
            non_upper_case_globals,
            unreachable_pub,
            unused_imports,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::nursery
        )]
        const _: () = {
            use #private as __p;
            #(#subscribers)*
            impl #owner {
                #constants
            }
        };
    }
}

/// The subscriptions of one function, as constants.
fn constants(all: &[Args], statics: &[Ident], one: &Ident, many: &Ident) -> TokenStream {
    let docs = "The subscription of this function, as constant data.";
    let all_docs = "All subscriptions of this function, in the order of its attributes.";
    let each = all.iter().map(|args| &args.conditions);
    // Where every attribute has a condition, there may be none.
    let some = all.iter().all(|args| !args.conditions.is_none()).then(|| {
        let conditions = all.iter().map(|args| args.conditions.all());
        quote!(#[cfg(any(#(#conditions),*))])
    });
    quote! {
        #some
        #[doc = #docs]
        pub const #one: &'static __p::Subscriber = Self::#many[0];
        #[doc = #all_docs]
        pub const #many: &'static [&'static __p::Subscriber] = &[#(#each &#statics),*];
    }
}

/// The topic or pattern that a subscription names.
struct Pattern {
    /// Where the user names a constant, its value: one constant of ours, so that one of a wrong type is one error.
    constant: Option<TokenStream>,
    value: Option<TokenStream>,
}

impl Pattern {
    fn of(args: &Args, number: usize) -> Self {
        match &args.topic {
            Some(Topic::Literal(topic)) => Self { constant: None, value: Some(quote!(#topic)) },
            Some(Topic::Constant(value)) => {
                let (span, name) = (spans::at_end(value), format_ident!("__TOPIC_{number}"));
                let constant = quote_spanned!(span=> const #name: &str = #value;);
                Self { constant: Some(constant), value: Some(quote!(#name)) }
            }
            None => Self { constant: None, value: None },
        }
    }
}

/// The trait that gives an argument its value.
fn source(args: &Args) -> TokenStream {
    if args.batch.is_some() { quote!(FromBatch) } else { quote!(FromDelivery) }
}

fn event_of(Argument { ty, .. }: &Argument, source: &TokenStream) -> TokenStream {
    let span = spans::at_type(ty);
    quote_spanned!(span=> <#ty as __p::#source<'_>>::EVENT)
}

/// Compares topic and arguments when the user's crate is compiled; each culprit is named by a call at its place.
fn checks(args: &Args, pattern: &Pattern, handler: &Handler, number: usize) -> TokenStream {
    let (source, batch) = (source(args), args.batch.is_some());
    let literal = matches!(args.topic, Some(Topic::Literal(_)));
    let value = &pattern.value;
    let pattern = value.as_ref().map_or_else(|| quote!(__p::None), |value| quote!(__p::Some(#value)));
    let arguments = handler.arguments.iter().map(|argument| {
        let (span, event, when) =
            (spans::at_type(&argument.ty), event_of(argument, &source), &argument.conditions);
        let check =
            quote_spanned!(span=> __event = __p::check::argument(__pattern, #literal, #event, __event););
        quote!(#when { #check })
    });
    let topic = match &args.topic {
        Some(Topic::Literal(topic)) => {
            let (span, catalog) = (spans::at(topic), crate_path::catalog());
            quote_spanned! {span=>
                __p::check::literal(#topic, __event);
                __p::check::exact(#topic, __event, #batch);
                __p::check::catalog(#catalog, #topic, __event);
            }
        }
        Some(Topic::Constant(named)) => {
            let span = spans::at_end(named);
            quote_spanned! {span=>
                __p::check::constant(#value);
                __p::check::exact(#value, __event, #batch);
            }
        }
        None => {
            let span = spans::at(&handler.name);
            let json = handler.arguments.iter().find_map(|argument| spans::inside_json(&argument.ty));
            let json = json.map_or_else(|| quote!(__p::None), |name| quote!(__p::Some(#name)));
            quote_spanned!(span=> __p::check::inferred(__event, #json);)
        }
    };
    let group = args.group.as_ref().map(|group| {
        let span = spans::at(group);
        quote_spanned!(span=> __p::check::group(#group);)
    });
    // The compiler names the constant in its message. A handler of that name is called beside it.
    let plain = if number == 0 { "subscription".to_owned() } else { format!("subscription_{}", number + 1) };
    let name = if handler.name == plain { format_ident!("__{plain}") } else { format_ident!("{plain}") };
    quote! {
        const #name: () = {
            let __pattern: __p::Option<&'static str> = #pattern;
            let mut __event = __p::None;
            #(#arguments)*
            #topic
            #group
        };
    }
}

/// The handler as data.
fn subscriber(args: &Args, pattern: &Pattern, handler: &Handler, adapter: &Ident) -> TokenStream {
    let source = source(args);
    let name = match (&args.name, &handler.receiver) {
        (Some(name), _) => name.value(),
        (None, Some(receiver)) => format!("{}.{}", type_name(receiver), handler.name.unraw()),
        (None, None) => handler.name.unraw().to_string(),
    };
    let group = match &args.group {
        Some(group) => quote!(#group),
        None => quote!(__p::concat!(__p::env!("CARGO_PKG_NAME"), ".", #name)),
    };
    let whens = handler.arguments.iter().map(|argument| &argument.conditions);
    let events = handler.arguments.iter().map(|argument| event_of(argument, &source));
    let events = quote!(&[#(#whens #events),*]);
    let pattern = pattern.value.clone().unwrap_or_else(|| quote!(__p::check::topic_of(#events)));
    let states = handler.arguments.iter().map(|Argument { ty, conditions }| {
        let span = spans::at_type(ty);
        let state = quote_spanned!(span=> <#ty as __p::#source<'_>>::STATE);
        quote!(#conditions #state)
    });
    let receiver =
        handler.receiver.as_ref().map(|receiver| quote!(<__p::State<#receiver> as __p::#source<'_>>::STATE,));
    let publishes = match &handler.answer {
        Some(answer) if args.batch.is_none() => {
            let span = spans::at_type(answer);
            quote_spanned!(span=> <#answer as __p::IntoOutcome>::PUBLISHES)
        }
        _ => quote!(__p::None),
    };
    let options = args.options.iter().map(|(name, value)| {
        let span = spans::at(name);
        quote_spanned!(span=> #name: __p::Some({ let __value: __p::check::option::#name = #value; __value }),)
    });
    let worker = if args.batch.is_some() { quote!(of_batch) } else { quote!(of) };
    let (docs, line) = (&handler.docs, spans::line(&handler.name));
    quote! {
        __p::Subscriber {
            subscription: __p::Subscription {
                name: __p::Cow::Borrowed(#name),
                group: __p::Cow::Borrowed(#group),
                pattern: __p::Cow::Borrowed(#pattern),
                event: __p::check::event_of(#events),
                publishes: #publishes,
                states: &[#receiver #(#states),*],
                options: __p::Options { #(#options)* ..__p::Options::DEFAULT },
                package: __p::env!("CARGO_PKG_NAME"),
                module: __p::module_path!(),
                file: __p::file!(),
                line: #line,
                docs: #docs,
            },
            worker: __p::Worker::#worker::<#adapter>(),
        }
    }
}

/// The function that takes the arguments out of a delivery, calls the handler, and reads its answer.
fn adapter_impl(args: &Args, handler: &Handler, adapter: &Ident) -> TokenStream {
    let name = &handler.name;
    let at_name = spans::at(name);
    let source = source(args);
    let take = if args.batch.is_some() { quote!(from_batch) } else { quote!(from_delivery) };
    let refuse = |outcome: TokenStream| match args.batch {
        Some(_) => quote!(__p::check::all(__delivery.len(), #outcome)),
        None => outcome,
    };
    let refused = refuse(quote!(__outcome));
    let names: Vec<_> =
        (0..handler.arguments.len()).map(|number| format_ident!("__argument{number}")).collect();
    let whens: Vec<_> = handler.arguments.iter().map(|argument| &argument.conditions).collect();
    let arguments = handler.arguments.iter().zip(&names).map(|(Argument { ty, conditions }, name)| {
        let span = spans::at_type(ty);
        let taken = quote_spanned! {span=>
            let #name = match <#ty as __p::#source<'_>>::#take(__delivery) {
                __p::Ok(__argument) => __argument,
                __p::Err(__outcome) => return #refused,
            };
        };
        quote!(#conditions #taken)
    });
    let receiver = handler.receiver.as_ref().map(|receiver| {
        quote! {
            let __receiver = match <__p::State<#receiver> as __p::#source<'_>>::#take(__delivery) {
                __p::Ok(__receiver) => __receiver,
                __p::Err(__outcome) => return #refused,
            };
        }
    });
    let called = match &handler.receiver {
        Some(receiver) => quote_spanned!(at_name=> <#receiver>::#name(&*__receiver, #(#whens #names),*)),
        None => quote_spanned!(at_name=> #name(#(#whens #names),*)),
    };
    let called = if handler.is_async { quote_spanned!(at_name=> #called.await) } else { called };
    let at_answer = handler.answer.as_ref().map_or_else(Span::call_site, spans::at_type);
    let answer_type = handler.answer.as_ref().map_or_else(|| quote!(()), |answer| quote!(#answer));
    if args.batch.is_some() {
        let admits = handler.arguments.iter().map(|Argument { ty, conditions }| {
            let span = spans::at_type(ty);
            let admit = quote_spanned!(span=> <#ty as __p::FromBatch<'_>>::admit(__delivery)?;);
            quote!(#conditions { #admit })
        });
        let answer = quote_spanned! {at_answer=>
            <#answer_type as __p::IntoOutcomes>::into_outcomes(__answer, __delivery.len())
        };
        let together = quote_spanned! {at_answer=>
            const TOGETHER: bool = <#answer_type as __p::IntoOutcomes>::TOGETHER;
        };
        return quote_spanned! {at_name=>
            impl __p::StaticBatchHandler for #adapter {
                #together

                fn admit(__delivery: &__p::Delivery) -> __p::Result<(), __p::Outcome> {
                    #(#admits)*
                    __p::Ok(())
                }

                async fn call(__delivery: &[__p::Delivery]) -> __p::Vec<__p::Outcome> {
                    #receiver
                    #(#arguments)*
                    let __answer: #answer_type = #called;
                    #answer
                }
            }
        };
    }
    let answer = quote_spanned!(at_answer=> <#answer_type as __p::IntoOutcome>::into_outcome(__answer));
    let body = quote! {
        #receiver
        #(#arguments)*
        let __answer: #answer_type = #called;
        #answer
    };
    let (blocking, body) = match args.blocking {
        Some(_) => (
            Some(quote!(
                const BLOCKING: bool = true;
            )),
            quote!(__p::blocking(__delivery, |__delivery| { #body }).await),
        ),
        None => (None, body),
    };
    quote_spanned! {at_name=>
        impl __p::StaticHandler for #adapter {
            #blocking

            async fn call(__delivery: &__p::Delivery) -> __p::Outcome {
                #body
            }
        }
    }
}

/// The last segment of a type, for the name of a method.
fn type_name(receiver: &Type) -> String {
    match receiver {
        Type::Path(path) => {
            path.path.segments.last().map_or_else(String::new, |segment| segment.ident.unraw().to_string())
        }
        _ => "impl".to_owned(),
    }
}
