//! `#[cfg]` and `#[cfg_attr]`: an attribute macro sees those below it as they were written, and what it adds has to
//! be there exactly where the item, or the argument, is.

use crate::tokens::written;
use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token};

/// Under which `#[cfg]` something is there.
#[derive(Clone, Default)]
pub(crate) struct Conditions(Vec<TokenStream>);

impl Conditions {
    /// What the attributes of an item, or of an argument, ask for.
    pub(crate) fn of(attributes: &[Attribute]) -> Self {
        let mut conditions = Self::default();
        for (when, meta) in attributes.iter().flat_map(conditional) {
            if let (true, Meta::List(list)) = (meta.path().is_ident("cfg"), &meta) {
                let asked = &list.tokens;
                conditions.0.push(match when.0.as_slice() {
                    [] => quote!(#asked),
                    when => quote!(any(not(all(#(#when),*)), #asked)),
                });
            }
        }
        conditions
    }

    /// Whether it is there always.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them as one, to be put in another.
    pub(crate) fn all(&self) -> TokenStream {
        let conditions = &self.0;
        quote!(all(#(#conditions),*))
    }
}

impl ToTokens for Conditions {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        self.0.iter().for_each(|condition| tokens.extend(quote!(#[cfg(#condition)])));
    }
}

/// The attributes that an attribute stands for, each with when it does: more than one for `#[cfg_attr(unix, a, b)]`.
fn conditional(attribute: &Attribute) -> Vec<(Conditions, Meta)> {
    unfold(&Conditions::default(), &attribute.meta)
}

fn unfold(when: &Conditions, meta: &Meta) -> Vec<(Conditions, Meta)> {
    let Some((condition, metas)) = cfg_attr(meta) else { return vec![(when.clone(), meta.clone())] };
    let mut when = when.clone();
    when.0.push(condition);
    metas.iter().flat_map(|meta| unfold(&when, meta)).collect()
}

/// The parts of `cfg_attr(condition, …)`.
fn cfg_attr(meta: &Meta) -> Option<(TokenStream, Vec<Meta>)> {
    let Meta::List(list) = meta else { return None };
    if !list.path.is_ident("cfg_attr") {
        return None;
    }
    let mut tokens = written(list.tokens.clone()).into_iter();
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
    let condition = tokens.by_ref().take_while(|token| !is_comma(token)).collect();
    let metas = Punctuated::<Meta, Token![,]>::parse_terminated.parse2(tokens.collect()).ok()?;
    Some((condition, metas.into_iter().collect()))
}

/// Takes from `attributes` those that `wanted` names, with when they are there; those within `#[cfg_attr]` as well.
pub(crate) fn extract(
    attributes: &mut Vec<Attribute>,
    wanted: impl Fn(&Meta) -> bool,
) -> Vec<(Conditions, Meta)> {
    let mut found = Vec::new();
    let mut kept = Vec::new();
    for attribute in attributes.drain(..) {
        let (taken, left): (Vec<_>, Vec<_>) =
            conditional(&attribute).into_iter().partition(|(_, meta)| wanted(meta));
        if taken.is_empty() {
            kept.push(attribute);
            continue;
        }
        kept.extend(left.into_iter().map(|(when, meta)| {
            let when = when.all();
            syn::parse_quote!(#[cfg_attr(#when, #meta)])
        }));
        found.extend(taken);
    }
    *attributes = kept;
    found
}
