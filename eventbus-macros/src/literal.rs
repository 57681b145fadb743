//! Literals that the macros check themselves, so that editors show a mistake while it is typed.

use syn::{Error, Expr, ExprLit, Lit, LitStr, Result};

/// The string literal that an expression is.
pub(crate) fn string(value: &Expr) -> Option<&LitStr> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text),
        Expr::Group(group) => string(&group.expr),
        _ => None,
    }
}

/// The whole number that an expression is.
pub(crate) fn number(value: &Expr) -> Option<u64> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse().ok(),
        Expr::Group(group) => number(&group.expr),
        _ => None,
    }
}

/// Checks the topic of an event.
pub(crate) fn check_topic(topic: &LitStr) -> Result<()> {
    explain(topic, |text| Some(eventbus_grammar::check_topic(text).err()?.explain(text)))
}

/// Checks the pattern of a subscription.
pub(crate) fn check_pattern(pattern: &LitStr) -> Result<()> {
    explain(pattern, |text| Some(eventbus_grammar::check_pattern(text).err()?.explain(text)))
}

/// Checks a duration.
pub(crate) fn check_duration(duration: &LitStr) -> Result<()> {
    explain(duration, |text| Some(eventbus_grammar::duration(text).err()?.explain(text)))
}

/// Checks a backoff.
pub(crate) fn check_backoff(backoff: &LitStr) -> Result<()> {
    explain(backoff, |text| Some(eventbus_grammar::duration_range(text).err()?.explain(text)))
}

/// What is wrong with a literal, at its place.
fn explain(literal: &LitStr, fault: impl Fn(&str) -> Option<eventbus_grammar::Text>) -> Result<()> {
    match fault(&literal.value()) {
        Some(explanation) => Err(Error::new(literal.span(), explanation.as_str())),
        None => Ok(()),
    }
}
