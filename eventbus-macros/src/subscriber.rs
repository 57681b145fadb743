//! `#[subscriber]` on an `impl` block: its methods may have `#[subscribe]`, and take `&self` from the state.

use crate::conditions::{self, Conditions};
use crate::crate_path;
use crate::fallback::{Errors, with_item};
use crate::subscribe::{self, Args, Handler, registration};
use crate::tokens::reread;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, ImplItem, ImplItemFn, ItemImpl, Meta, Path, Result};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let mut block = match syn::parse2::<ItemImpl>(item.clone()) {
        Ok(block) => block,
        Err(_) => {
            let message = "`#[subscriber]` goes on an `impl` block; a function has `#[subscribe]`";
            return with_item(item.clone(), &Error::new_spanned(item.into_iter().next(), message));
        }
    };
    let registrations = try_expand(attribute, &mut block).unwrap_or_else(|error| error.to_compile_error());
    // The methods stay, without the attributes that could not be understood.
    for method in methods(&mut block) {
        conditions::extract(&mut method.attrs, subscribe::is_subscribe);
    }
    quote!(#block #registrations)
}

fn try_expand(attribute: TokenStream, block: &mut ItemImpl) -> Result<TokenStream> {
    let facade = crate_path::only(
        attribute,
        "`#[subscriber]` takes `crate = path` and nothing else; options go to the methods' `#[subscribe]`",
    )?;
    if let Some(parameter) = block.generics.params.first() {
        let message = "a subscriber is registered once, when the program is linked, so its `impl` block cannot be generic";
        return Err(Error::new_spanned(parameter, message));
    }
    let receiver = reread(&*block.self_ty)?;
    let of_block = Conditions::of(&block.attrs);
    let mut registrations = TokenStream::new();
    for method in methods(block) {
        let attributes = conditions::extract(&mut method.attrs, subscribe::is_subscribe);
        if attributes.is_empty() {
            continue;
        }
        let of_method = Conditions::of(&method.attrs);
        let paths: Vec<_> =
            attributes.iter().map(|(when, attribute)| (when.clone(), attribute.path().clone())).collect();
        let imports = paths.iter().map(|(when, path)| quote!(#when #[allow(unused_imports)] use #path as _;));
        // The methods without a mistake are registered, so that it brings no others with it.
        let registration = method_registration(method, attributes, &receiver, facade.as_ref())
            .unwrap_or_else(|error| error.to_compile_error());
        registrations.extend(quote! {
            #of_block
            #of_method
            const _: () = {
                // This expansion took the attributes away: their import is used all the same.
                #(#imports)*
                #registration
            };
        });
    }
    Ok(registrations)
}

fn method_registration(
    method: &mut ImplItemFn,
    attributes: Vec<(Conditions, Meta)>,
    receiver: &syn::Type,
    facade: Option<&Path>,
) -> Result<TokenStream> {
    let mut errors = Errors::default();
    let all: Vec<_> = attributes
        .into_iter()
        .filter_map(|(when, attribute)| errors.take(Args::of(when, &attribute)))
        .map(|mut args| {
            args.facade = args.facade.or_else(|| facade.cloned());
            args
        })
        .collect();
    let handler = errors.take(Handler::new(&method.sig, &method.attrs, &method.vis, Some(receiver)));
    let Some(handler) = handler else { return errors.finish(TokenStream::new()) };
    for args in &all {
        errors.take(subscribe::fits(args, &handler));
    }
    errors.finish(())?;
    subscribe::document(&mut method.attrs, &all, &handler);
    Ok(registration(&all, &handler))
}

fn methods(block: &mut ItemImpl) -> impl Iterator<Item = &mut ImplItemFn> {
    block.items.iter_mut().filter_map(|item| match item {
        ImplItem::Fn(method) => Some(method),
        _ => None,
    })
}
