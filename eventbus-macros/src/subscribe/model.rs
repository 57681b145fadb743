//! A handler as the macro sees it: a function or method that was found fit to be one.

use super::{at_name, check};
use crate::fallback::Errors;
use crate::spans;
use syn::{
    Attribute, Expr, ExprLit, FnArg, Ident, Lit, Meta, Result, ReturnType, Signature, Type, Visibility,
};

/// A function or method that can be a handler.
pub(crate) struct Handler {
    pub(crate) name: Ident,
    pub(crate) visibility: Visibility,
    /// The type of the `impl` block that a method stands in.
    pub(crate) receiver: Option<Type>,
    pub(crate) arguments: Vec<Type>,
    pub(crate) answer: Option<Type>,
    pub(crate) is_async: bool,
    /// `#[cfg]` attributes, which apply to everything that is generated.
    pub(crate) conditions: Vec<Attribute>,
    pub(crate) docs: String,
    /// The name of the type that is likely the event, for documentation.
    pub(crate) event_hint: Option<String>,
}

impl Handler {
    pub(crate) fn new(
        signature: &Signature,
        attributes: &[Attribute],
        visibility: &Visibility,
        receiver: Option<&Type>,
    ) -> Result<Self> {
        let mut errors = Errors::default();
        errors.take(check::signature(signature, receiver.is_some()));
        let mut arguments = Vec::new();
        for argument in &signature.inputs {
            if let FnArg::Typed(argument) = argument {
                errors.take(check::argument(&argument.ty));
                arguments.push((*argument.ty).clone());
            }
        }
        let answer = match &signature.output {
            ReturnType::Default => None,
            ReturnType::Type(_, answer) => {
                errors.take(check::answer(answer));
                Some((**answer).clone())
            }
        };
        if receiver.is_some() && signature.receiver().is_none() {
            errors.push(at_name(
                &signature.ident,
                "a method with `#[subscribe]` takes `&self`, which comes from `State<Self>`; without it, write a free function",
            ));
        }
        let handler = Self {
            name: signature.ident.clone(),
            visibility: visibility.clone(),
            receiver: receiver.cloned(),
            event_hint: arguments.iter().find_map(event_name),
            arguments,
            answer,
            is_async: signature.asyncness.is_some(),
            conditions: conditions(attributes),
            docs: docs(attributes),
        };
        errors.finish(handler)
    }
}

/// The `#[cfg]` attributes.
pub(crate) fn conditions(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).cloned().collect()
}

fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// The last segment of an argument that may be an event.
fn event_name(argument: &Type) -> Option<String> {
    const OTHERS: &[&str] =
        &["State", "Attempt", "Publisher", "Headers", "Envelope", "Delivery", "Json", "Bytes"];
    match spans::inside(argument) {
        Type::Path(path) => {
            let name = path.path.segments.last()?.ident.to_string();
            (!OTHERS.contains(&name.as_str())).then_some(name)
        }
        _ => None,
    }
}
