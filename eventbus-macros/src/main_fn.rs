//! `#[eventbus::main]`: a runtime around `async fn main`, and every dependency linked.

use crate::fallback::with_item;
use crate::{crate_path, link};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Error, ItemFn};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match try_expand(attribute, item.clone()) {
        Ok(tokens) => tokens,
        Err(error) => with_item(item, &error),
    }
}

fn try_expand(attribute: TokenStream, item: TokenStream) -> syn::Result<TokenStream> {
    let facade = crate_path::only(attribute, "`#[eventbus::main]` takes `crate = path` and nothing else");
    let refused = facade.as_ref().err().map(Error::to_compile_error);
    let mut function: ItemFn = syn::parse2(item)?;
    if function.sig.asyncness.take().is_none() {
        return Err(Error::new_spanned(
            function.sig.fn_token.to_token_stream(),
            "`#[eventbus::main]` goes on `async fn main`",
        ));
    }
    let links = link::link(std::env::args());
    let private = crate_path::private(facade.ok().flatten().as_ref());
    let (body, output) = (&function.block, &function.sig.output);
    let answer = match output {
        syn::ReturnType::Default => quote!(()),
        syn::ReturnType::Type(_, answer) => quote!(#answer),
    };
    let block = syn::parse2(quote!({
        let __main = async { let __answer: #answer = async #body.await; __answer };
        #private::block_on(__main)
    }))?;
    *function.block = block;
    Ok(quote!(#refused #links #function))
}
