//! What can be said of a handler from its tokens alone, one sentence each.

use super::home::Home;
use super::{Args, Handler, at_name};
use proc_macro2::TokenStream;
use syn::ext::IdentExt;
use syn::{
    Attribute, Error, GenericParam, Item, ReceiverKind, Result, Safety, Signature, Type, TypeImplTrait,
    TypeParamBound,
};

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
    if let Safety::Unsafe(unsafety) = &signature.safety {
        let message = "a subscriber is called by the bus, which cannot keep what an `unsafe fn` asks of its caller; make it \
                       safe, and call this one in an `unsafe` block";
        return Err(Error::new_spanned(unsafety, message));
    }
    if signature.ident.to_string().starts_with("__") {
        let message = "names that begin with `__` are those of generated code; give the subscriber another";
        return Err(at_name(&signature.ident, message));
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
        None if !is_method && Home::of(&signature.ident) == Home::Impl => Err(at_name(
            &signature.ident,
            "`#[subscribe]` in an `impl` block goes on methods with `&self`, and the block is marked with `#[subscriber]`; \
             without `&self`, write a free function",
        )),
        Some(receiver) if !is_method => Err(Error::new_spanned(
            receiver,
            "`#[subscribe]` on a method needs `#[subscriber]` on its `impl` block; or take the receiver as \
             `State<Self>` in a free function",
        )),
        Some(receiver) if !is_shared(&receiver.kind) => Err(Error::new_spanned(
            receiver,
            "handlers run at the same time and share their receiver, so it is taken as `&self`",
        )),
        _ => Ok(()),
    }
}

/// `&self`, or `self: &Self`.
fn is_shared(receiver: &ReceiverKind) -> bool {
    match receiver {
        ReceiverKind::Reference(_, _, mutability) => mutability.is_none(),
        ReceiverKind::Typed(_, ty) => match &**ty {
            Type::Reference(reference) => {
                reference.mutability.is_none()
                    && matches!(&*reference.elem, Type::Path(path) if path.path.is_ident("Self"))
            }
            _ => false,
        },
        _ => false,
    }
}

/// Checks what no attribute beside `#[subscribe]` can be.
pub(crate) fn attributes(attributes: &[Attribute]) -> Result<()> {
    let is_test = |attribute: &&Attribute| {
        attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
    };
    match attributes.iter().find(is_test) {
        Some(test) => Err(Error::new_spanned(
            test,
            "a test is called by the test runner and a subscriber by the bus; put the subscriber inside of the test, \
             or beside it",
        )),
        None => Ok(()),
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
        Type::ImplTrait(answer) if is_future(answer) => Err(Error::new_spanned(
            answer,
            "write `async fn …` with the future's answer, in place of a function that returns `impl Future`",
        )),
        Type::ImplTrait(_) => Err(Error::new_spanned(
            answer,
            "a subscriber's answer has a type that can be named, so it cannot be `impl Trait`; name the type",
        )),
        _ => Ok(()),
    }
}

fn is_future(answer: &TypeImplTrait) -> bool {
    answer.bounds.iter().any(|bound| match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().is_some_and(|segment| segment.ident == "Future")
        }
        _ => false,
    })
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
    if let (Some(twin), Some(_)) = (&args.twin, &handler.receiver) {
        let message = format!(
            "a method has no type of its own: its subscription is the constant `{}_SUBSCRIBER`, beside the method",
            handler.name.unraw().to_string().to_uppercase()
        );
        return Err(at_name(twin, &message));
    }
    match args.options.iter().find(|(name, _)| name == "linger") {
        Some((linger, _)) if args.batch.is_none() => Err(at_name(
            linger,
            "`linger` is the age at which a batch is handled though it is not full; it needs `batch = …`",
        )),
        _ => Ok(()),
    }
}
