//! A topic, as it is written in an attribute.

use crate::literal;
use quote::ToTokens;
use syn::parse::ParseStream;
use syn::{Error, Expr, LitStr, Result};

/// The topic of an event, or the topic or pattern that is listened on.
pub(crate) enum Topic {
    Literal(LitStr),
    /// Any other constant `&str`.
    Constant(Expr),
}

impl Topic {
    /// Reads a topic; a literal has to pass `check`.
    pub(crate) fn parse(input: ParseStream<'_>, check: fn(&LitStr) -> Result<()>) -> Result<Self> {
        let value: Expr = input.parse()?;
        match (literal::string(&value), &value) {
            (Some(topic), _) => {
                check(topic)?;
                Ok(Self::Literal(topic.clone()))
            }
            (None, Expr::Lit(_)) => Err(Error::new_spanned(
                value,
                "a topic is a literal such as \"order.placed\", or a constant `&str`",
            )),
            (None, _) => Ok(Self::Constant(value)),
        }
    }

    /// The topic as documentation shows it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Literal(topic) => format!("`{}`", topic.value()),
            Self::Constant(value) => {
                let value = value.to_token_stream().to_string().replace(' ', "");
                format!("`{value}`")
            }
        }
    }
}
