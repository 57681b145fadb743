//! `link_all!`: names every crate that this one depends on.
//!
//! rustc tells a macro nothing about dependencies, but cargo passes each of them to rustc as `--extern name=file`,
//! and the macro runs inside that rustc, whose arguments it can read. No promise covers this; it is what cargo has
//! done since there are editions.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

pub(crate) fn expand(input: TokenStream) -> TokenStream {
    if let Some(first) = input.into_iter().next() {
        return syn::Error::new(
            first.span(),
            "`link_all!()` takes nothing; to name crates, write `link!(…)`",
        )
        .to_compile_error();
    }
    link(std::env::args())
}

/// `use name as _;` for each library among the arguments of rustc.
pub(crate) fn link(arguments: impl Iterator<Item = String>) -> TokenStream {
    let names = crates(arguments).map(|name| format_ident!("{name}"));
    quote!(#(#[allow(unused_imports)] use ::#names as _;)*)
}

/// The libraries among the arguments of rustc.
pub(crate) fn crates(arguments: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let arguments: Vec<String> = arguments.collect();
    let named = arguments.windows(2).filter(|pair| pair[0] == "--extern");
    let crates: Vec<_> = named.filter_map(|pair| library(&pair[1]).map(str::to_owned)).collect();
    crates.into_iter()
}

/// The crate of `options:name=file`, where the file is a Rust library; procedural macros are shared objects.
fn library(argument: &str) -> Option<&str> {
    let (name, file) = argument.split_once('=')?;
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    (file.ends_with(".rlib") || file.ends_with(".rmeta")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_linked_and_procedural_macros_are_not() {
        let arguments = [
            "rustc",
            "--extern",
            "shop=libshop-1.rlib",
            "--extern",
            "noprelude:mail=libmail-2.rmeta",
            "--extern",
            "serde_derive=libserde_derive-3.so",
            "--extern",
            "core",
        ];
        let linked = link(arguments.iter().map(ToString::to_string)).to_string();
        assert!(linked.contains("shop as _") && linked.contains("mail as _"), "{linked}");
        assert!(!linked.contains("serde_derive") && !linked.contains("core"), "{linked}");
    }
}
