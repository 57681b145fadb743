//! A handler as the macro sees it: a function or method that was found fit to be one.

use super::{at_name, check};
use crate::conditions::Conditions;
use crate::fallback::Errors;
use crate::{spans, tokens};
use syn::{
    Attribute, Expr, ExprLit, FnArg, Ident, Lit, Meta, Result, ReturnType, Signature, Type, Visibility,
};

/// A function or method that can be a handler.
pub(crate) struct Handler {
    pub(crate) name: Ident,
    pub(crate) visibility: Visibility,
    /// The type of the `impl` block that a method stands in.
    pub(crate) receiver: Option<Type>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) answer: Option<Type>,
    pub(crate) is_async: bool,
    /// When the function is there, and with it everything that is generated.
    pub(crate) conditions: Conditions,
    pub(crate) docs: String,
    /// The name of the type that is likely the event, for documentation.
    pub(crate) event_hint: Option<String>,
}

/// An argument of a handler.
pub(crate) struct Argument {
    /// When it is there.
    pub(crate) conditions: Conditions,
    pub(crate) ty: Type,
}

impl Handler {
    pub(crate) fn new(
        signature: &Signature,
        attributes: &[Attribute],
        visibility: &Visibility,
        receiver: Option<&Type>,
    ) -> Result<Self> {
        let mut errors = Errors::default();
        let signature = &tokens::reread(signature)?;
        errors.take(check::signature(signature, receiver.is_some()));
        errors.take(check::attributes(attributes));
        let mut arguments = Vec::new();
        for argument in &signature.inputs {
            if let FnArg::Typed(argument) = argument {
                let ty = tokens::ungrouped(&argument.ty).clone();
                errors.take(check::argument(&ty));
                arguments.push(Argument { conditions: Conditions::of(&argument.attrs), ty });
            }
        }
        let answer = match &signature.output {
            ReturnType::Default => None,
            ReturnType::Type(_, answer) => {
                let answer = tokens::ungrouped(answer);
                errors.take(check::answer(answer));
                Some(answer.clone())
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
            event_hint: arguments.iter().find_map(|argument| event_name(&argument.ty)),
            arguments,
            answer,
            is_async: signature.asyncness.is_some(),
            conditions: Conditions::of(attributes),
            docs: docs(attributes),
        };
        errors.finish(handler)
    }
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
