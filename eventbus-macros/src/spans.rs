//! Spans of generated tokens.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Expr, GenericArgument, Ident, PathArguments, PathSegment, Type};

/// A span that points at the user's code, and belongs to the macro: the caret lands on the culprit, and the lints
/// of the user's crate do not apply to what the macro wrote.
pub(crate) fn at(place: &impl ToTokens) -> Span {
    Span::call_site().located_at(place.span())
}

/// The same for an expression: at the last name of a path, since spans cannot be joined on stable.
pub(crate) fn at_end(place: &Expr) -> Span {
    match place {
        Expr::Path(path) => path.path.segments.last().map_or_else(|| at(path), |segment| at(&segment.ident)),
        other => at(other),
    }
}

/// The same for a type, or for the event in it. Spans cannot be joined on stable, so it points at the last segment
/// of a path, or at the first token.
pub(crate) fn at_type(place: &Type) -> Span {
    match inside(place) {
        Type::Path(path) => match path.path.segments.last() {
            Some(segment) => at(&segment.ident),
            None => at(path),
        },
        other => at(other),
    }
}

/// The type that a reference, an `Arc`, a `Vec` or a `Batch` is made of.
pub(crate) fn inside(place: &Type) -> &Type {
    match place {
        Type::Reference(reference) => inside(&reference.elem),
        Type::Group(group) => inside(&group.elem),
        Type::Path(path) => match path.path.segments.last() {
            Some(PathSegment { ident, arguments: PathArguments::AngleBracketed(inner) })
                if ident == "Arc" || ident == "Vec" || ident == "Batch" =>
            {
                match inner.args.first() {
                    Some(GenericArgument::Type(inner)) => self::inside(inner),
                    _ => place,
                }
            }
            _ => place,
        },
        _ => place,
    }
}

/// The name of the type that `Json<…>` holds, unless it is any JSON at all.
pub(crate) fn inside_json(place: &Type) -> Option<String> {
    let Type::Path(path) = place else { return None };
    let PathSegment { ident, arguments: PathArguments::AngleBracketed(inner) } = path.path.segments.last()?
    else {
        return None;
    };
    let (true, Some(GenericArgument::Type(Type::Path(inner)))) = (ident == "Json", inner.args.first()) else {
        return None;
    };
    let name = &inner.path.segments.last().filter(|last| last.arguments.is_none())?.ident;
    (name != "Value").then(|| name.to_string())
}

/// The line of an identifier in its file.
pub(crate) fn line(place: &Ident) -> u32 {
    u32::try_from(place.span().unwrap().line()).unwrap_or(0)
}
