//! The arguments of `#[subscribe]`: a topic, and options.

use crate::conditions::Conditions;
use crate::fallback::Errors;
use crate::tokens::written;
use crate::topic::Topic;
use crate::{literal, nearest};
use eventbus_grammar::{MAX_GROUP, is_group};
use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, Ident, LitStr, Meta, Path, Result, Token};

/// What stands between the parentheses.
#[derive(Default)]
pub(crate) struct Args {
    /// When the attribute is there.
    pub(crate) conditions: Conditions,
    pub(crate) topic: Option<Topic>,
    pub(crate) group: Option<Expr>,
    pub(crate) name: Option<LitStr>,
    /// The name of the type that holds the constants.
    pub(crate) twin: Option<Ident>,
    pub(crate) facade: Option<Path>,
    pub(crate) blocking: Option<Ident>,
    pub(crate) batch: Option<Ident>,
    /// Fields of the `Options` literal, with their values.
    pub(crate) options: Vec<(Ident, TokenStream)>,
}

/// All options, for "did you mean".
const OPTIONS: &[&str] = &[
    "group",
    "retries",
    "backoff",
    "timeout",
    "concurrency",
    "start",
    "competing",
    "dead_letter",
    "replay",
    "batch",
    "linger",
    "blocking",
    "name",
    "as",
    "crate",
];

impl Args {
    /// The arguments of an attribute that was found on the item, and is there under `conditions`.
    pub(crate) fn of(conditions: Conditions, attribute: &Meta) -> Result<Self> {
        let args = match attribute {
            Meta::Path(_) => Self::default(),
            Meta::List(list) => syn::parse2(written(list.tokens.clone()))?,
            Meta::NameValue(_) => {
                let message = "the topic goes in parentheses: `#[subscribe(\"order.placed\")]`";
                return Err(Error::new_spanned(attribute, message));
            }
        };
        Ok(Self { conditions, ..args })
    }

    fn parse_option(&mut self, input: ParseStream<'_>) -> Result<()> {
        let name = input.call(Ident::parse_any)?;
        let word = name.to_string();
        if word == "blocking" {
            if !is_end(input) {
                skip(input)?;
                return Err(Error::new(name.span(), "`blocking` is a flag; write it without a value"));
            }
            self.blocking = Some(name);
            return Ok(());
        }
        if !OPTIONS.contains(&word.as_str()) {
            skip(input)?;
            return Err(nearest::unknown(&name, OPTIONS));
        }
        if !input.peek(Token![=]) {
            skip(input)?;
            return Err(Error::new(name.span(), format!("`{word}` needs a value: `{word} = …`")));
        }
        input.parse::<Token![=]>()?;
        match word.as_str() {
            "crate" => self.facade = Some(input.call(Path::parse_mod_style)?),
            "as" => self.twin = Some(input.parse()?),
            _ => return self.set(name, input.parse()?),
        }
        Ok(())
    }

    fn set(&mut self, name: Ident, value: Expr) -> Result<()> {
        let word = name.to_string();
        match (word.as_str(), literal::string(&value)) {
            ("group", text) => {
                text.map_or(Ok(()), check_group)?;
                self.group = Some(value);
                return Ok(());
            }
            ("name", Some(text)) => {
                check_group(text)?;
                self.name = Some(text.clone());
                return Ok(());
            }
            ("name", None) => return Err(Error::new_spanned(value, "a name is a string literal")),
            ("timeout" | "linger", Some(text)) => {
                literal::check_duration(text)?;
                self.push(&name, |p| quote_spanned!(text.span()=> #p::check::duration(#text)));
            }
            ("timeout" | "linger", None) if literal::number(&value).is_some() => {
                let message = "a duration has a unit (ms, s, m or h), as in \"500ms\" or \"30s\"";
                return Err(Error::new_spanned(value, message));
            }
            ("backoff", Some(text)) => {
                literal::check_backoff(text)?;
                self.push(&name, |p| quote_spanned!(text.span()=> #p::Backoff::parse(#text)));
            }
            ("start", Some(text)) => {
                if !["latest", "earliest"].contains(&text.value().as_str()) {
                    let message = "a start is \"latest\" (events published from now on) or \"earliest\" (all that are kept)";
                    return Err(Error::new(text.span(), message));
                }
                self.push(&name, |p| quote_spanned!(text.span()=> #p::Start::parse(#text)));
            }
            (option @ ("concurrency" | "batch"), _) => {
                if literal::number(&value) == Some(0) {
                    return Err(Error::new_spanned(value, format!("`{option}` is at least 1")));
                }
                if option == "batch" {
                    self.batch = Some(name.clone());
                }
                self.push(&name, |_| value.into_token_stream());
            }
            _ => self.push(&name, |_| value.into_token_stream()),
        }
        Ok(())
    }

    fn push(&mut self, name: &Ident, value: impl FnOnce(TokenStream) -> TokenStream) {
        self.options.push((name.clone(), value(quote!(__p))));
    }
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut args, mut errors) = (Self::default(), Errors::default());
        let mut seen: Vec<String> = Vec::new();
        let (mut first, mut has_topic) = (true, false);
        while !input.is_empty() {
            if first && is_topic(input) {
                has_topic = true;
                args.topic = errors.take(Topic::parse(input, literal::check_pattern));
            } else if input.peek(LitStr) {
                let late: LitStr = input.parse()?;
                let message = match has_topic {
                    true => "a subscription has one topic; for a second one, add another `#[subscribe]`",
                    false => "the topic comes first: `#[subscribe(\"order.placed\", option = value)]`",
                };
                errors.push(Error::new(late.span(), message));
            } else {
                let name = input.fork().call(Ident::parse_any)?;
                if name == "topic" {
                    skip(input)?;
                    let message = "the topic comes first, without its name: `#[subscribe(\"order.placed\")]`";
                    errors.push(Error::new(name.span(), message));
                } else if seen.contains(&name.to_string()) {
                    skip(input)?;
                    errors.push(Error::new(name.span(), format!("`{name}` is set twice")));
                } else {
                    seen.push(name.to_string());
                    errors.take(args.parse_option(input));
                }
            }
            first = false;
            if !input.is_empty() && !input.peek(Token![,]) {
                errors.push(input.error("expected `,`"));
                input.parse::<TokenStream>()?;
                break;
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        errors.finish(args)
    }
}

/// Whether a topic comes next, as opposed to an option.
fn is_topic(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    match ahead.call(Ident::parse_any) {
        Ok(name) if is_end(&ahead) => !nearest::is_word_of(&name, OPTIONS),
        // A call, unless it is meant as an option: `retries(3)`.
        Ok(name) if ahead.peek(syn::token::Paren) => !nearest::is_word_of(&name, OPTIONS),
        Ok(_) => !ahead.peek(Token![=]),
        Err(_) => true,
    }
}

/// Whether an argument ends here.
fn is_end(input: ParseStream<'_>) -> bool {
    input.is_empty() || input.peek(Token![,])
}

/// Passes over the rest of an argument that is not wanted.
fn skip(input: ParseStream<'_>) -> Result<()> {
    while !is_end(input) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}

fn check_group(text: &LitStr) -> Result<()> {
    if !is_group(&text.value()) {
        let message =
            format!("names of groups and subscribers are 1 to {MAX_GROUP} characters of [A-Za-z0-9_.-]");
        return Err(Error::new(text.span(), message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;

    #[test]
    fn the_page_of_the_attribute_has_each_option() {
        let page = include_str!("../../../src/docs/subscribe.md");
        for option in OPTIONS {
            assert!(page.contains(&format!("\n| `{option}` | ")), "`{option}` has no row");
        }
    }
}
