//! Tokens as they were written: what a `macro_rules!` puts in for `$topic:literal` arrives in a group without
//! delimiters, which keeps `$a * 2` from being torn apart.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{Parse, Parser};
use syn::{Path, Type};

/// The same tokens, without the groups that keep nothing together: around a literal, a name, a path.
pub(crate) fn written(tokens: TokenStream) -> TokenStream {
    tokens.into_iter().flat_map(without_group).collect()
}

/// The same item, or part of one, as it was written.
pub(crate) fn reread<T: Parse + ToTokens>(part: &T) -> syn::Result<T> {
    syn::parse2(written(part.to_token_stream()))
}

/// The type that was written, where a `macro_rules!` has put it in a group.
pub(crate) fn ungrouped(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungrouped(&group.elem),
        Type::Paren(paren) => ungrouped(&paren.elem),
        other => other,
    }
}

fn without_group(token: TokenTree) -> TokenStream {
    let TokenTree::Group(group) = token else { return token.into() };
    let inner = written(group.stream());
    if group.delimiter() == Delimiter::None && is_one(&inner) {
        return inner;
    }
    let mut same = Group::new(group.delimiter(), inner);
    same.set_span(group.span());
    TokenTree::Group(same).into()
}

/// Whether nothing that stands beside these tokens can tear them apart.
fn is_one(tokens: &TokenStream) -> bool {
    tokens.clone().into_iter().nth(1).is_none() || Path::parse_mod_style.parse2(tokens.clone()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quote::quote;

    fn in_group(tokens: TokenStream) -> TokenTree {
        TokenTree::Group(Group::new(Delimiter::None, tokens))
    }

    #[test]
    fn a_group_goes_where_it_keeps_nothing_together() {
        for plain in [quote!("order.placed"), quote!(id), quote!(crate::topics::PLACED), quote!()] {
            let group = in_group(in_group(plain.clone()).into());
            assert_eq!(written(quote!(f(topic = #group))).to_string(), quote!(f(topic = #plain)).to_string());
        }
    }

    #[test]
    fn a_group_stays_where_it_keeps_something_together() {
        for sum in [quote!(1 + 2), quote!(-1), quote!(Vec<u8>)] {
            let group = in_group(sum);
            let kept = written(group.into()).into_iter().next();
            assert!(matches!(kept, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::None));
        }
    }
}
