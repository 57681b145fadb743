//! What can be said of a handler from its tokens alone, one sentence each.

use super::{Args, Handler, at_name};
use proc_macro2::TokenStream;
use syn::{Error, GenericParam, Item, ReceiverKind, Result, Signature, Type};

/// `#[subscribe]` on something that is no function.
pub(crate) fn not_a_function(item: TokenStream) -> Error {
    let message =
        "`#[subscribe]` goes on a function; in an `impl` block, mark the block with `#[subscriber]`";
    match syn::parse2::<Item>(item.clone()) {
        Ok(Item::Struct(item)) => at_name(&item.ident, message),
        Ok(Item::Enum(item)) => at_name(&item.ident, message),
        Ok(Item::Impl(_)) => Error::new_spanned(
            item.into_iter().next(),
            "`#[subscribe]` goes on the methods; the `impl` block itself is marked with `#[subscriber]`",
        ),
        Ok(Item::Fn(_)) => unreachable!("functions are parsed before"),
        Ok(_) => Error::new_spanned(item.into_iter().next(), message),
        Err(error) => error,
    }
}

/// Checks everything before the body but the types.
pub(crate) fn signature(signature: &Signature, is_method: bool) -> Result<()> {
    if let Some(constness) = &signature.constness {
        return Err(Error::new_spanned(
            constness,
            "a subscriber runs when an event comes, so it cannot be `const`",
        ));
    }
    if let Some(parameter) = signature.generics.params.first() {
        let message = match parameter {
            GenericParam::Lifetime(_) => {
                "subscribers need no lifetime parameters: leave them out (`event: &OrderPlaced`)"
            }
            _ => {
                "a subscriber is registered once, when the program is linked, so it cannot be generic; write one \
                 `#[subscribe]` function for each type, which calls this one"
            }
        };
        return Err(Error::new_spanned(parameter, message));
    }
    match signature.receiver() {
        Some(receiver) if !is_method => Err(Error::new_spanned(
            receiver,
            "`#[subscribe]` on a method needs `#[subscriber]` on its `impl` block; or take the receiver as \
             `State<Self>` in a free function",
        )),
        Some(receiver) if !matches!(receiver.kind, ReceiverKind::Reference(_, _, None)) => {
            Err(Error::new_spanned(
                receiver,
                "handlers run at the same time and share their receiver, so it is taken as `&self`",
            ))
        }
        _ => Ok(()),
    }
}

/// Checks what no argument can be.
pub(crate) fn argument(argument: &Type) -> Result<()> {
    match argument {
        Type::Reference(reference) if reference.mutability.is_some() => Err(Error::new_spanned(
            argument,
            "events are shared between subscribers, so they cannot be taken by `&mut`; take the event by value to \
             get a copy of your own",
        )),
        Type::ImplTrait(_) => Err(Error::new_spanned(
            argument,
            "a subscriber's arguments have types that can be named, so `impl Trait` cannot be one; name the type",
        )),
        Type::Reference(reference)
            if reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static") =>
        {
            Err(Error::new_spanned(
                argument,
                "an event lives as long as its delivery; leave `'static` out, or take `Arc<…>`",
            ))
        }
        _ => Ok(()),
    }
}

/// Checks what no answer can be.
pub(crate) fn answer(answer: &Type) -> Result<()> {
    match answer {
        Type::ImplTrait(_) => Err(Error::new_spanned(
            answer,
            "a subscriber's answer has a type that can be named, so it cannot be `impl Trait`; name the type",
        )),
        _ => Ok(()),
    }
}

/// Checks that the options fit the function, and each other.
pub(crate) fn fits(args: &Args, handler: &Handler) -> Result<()> {
    if let Some(blocking) = &args.blocking {
        if handler.is_async {
            return Err(at_name(
                blocking,
                "`blocking` is for a plain `fn`, which then runs on a thread where it may block; leave out `async` or `blocking`",
            ));
        }
        if args.batch.is_some() {
            return Err(at_name(
                blocking,
                "`blocking` and `batch` do not go together yet; spawn the blocking part in an `async fn`",
            ));
        }
    }
    match args.options.iter().find(|(name, _)| name == "linger") {
        Some((linger, _)) if args.batch.is_none() => Err(at_name(
            linger,
            "`linger` is the age at which a batch is handled though it is not full; it needs `batch = …`",
        )),
        _ => Ok(()),
    }
}
