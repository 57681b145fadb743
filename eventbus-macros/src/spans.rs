//! Spans of generated tokens.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Ident, Type};

/// A span that points at the user's code, and belongs to the macro: the caret lands on the culprit, and the lints
/// of the user's crate do not apply to what the macro wrote.
pub(crate) fn at(place: &impl ToTokens) -> Span {
    Span::call_site().located_at(place.span())
}

/// The same for a type. Spans cannot be joined on stable, so it points at the last segment of a path, or at the
/// first token.
pub(crate) fn at_type(place: &Type) -> Span {
    match place {
        Type::Reference(reference) => at_type(&reference.elem),
        Type::Group(group) => at_type(&group.elem),
        Type::Path(path) => match path.path.segments.last() {
            Some(segment) => at(&segment.ident),
            None => at(path),
        },
        other => at(other),
    }
}

/// The line of an identifier in its file.
pub(crate) fn line(place: &Ident) -> u32 {
    u32::try_from(place.span().unwrap().line()).unwrap_or(0)
}
