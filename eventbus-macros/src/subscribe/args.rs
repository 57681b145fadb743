//! The arguments of `#[subscribe]`: a topic, and options.

use crate::fallback::Errors;
use crate::{literal, nearest};
use eventbus_grammar::{MAX_GROUP, is_group};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Error, Expr, Ident, LitStr, Meta, Path, Result, Token};

/// What stands between the parentheses.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) topic: Option<Topic>,
    pub(crate) group: Option<Expr>,
    pub(crate) name: Option<LitStr>,
    pub(crate) facade: Option<Path>,
    pub(crate) blocking: Option<Ident>,
    pub(crate) batch: Option<Ident>,
    /// Fields of the `Options` literal, with their values.
    pub(crate) options: Vec<(Ident, TokenStream)>,
}

/// The topic or pattern that is listened on.
pub(crate) enum Topic {
    Literal(LitStr),
    Constant(Path),
}

impl Topic {
    /// The topic as documentation shows it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Literal(topic) => format!("`{}`", topic.value()),
            Self::Constant(path) => {
                let path = path.to_token_stream().to_string().replace(' ', "");
                format!("`{path}`")
            }
        }
    }
}

/// All options, for "did you mean".
const OPTIONS: &[&str] = &[
    "group",
    "retries",
    "backoff",
    "timeout",
    "concurrency",
    "start",
    "dead_letter",
    "replay",
    "batch",
    "linger",
    "blocking",
    "name",
    "crate",
];

impl Args {
    /// The arguments of an attribute that was found on the item.
    pub(crate) fn of(attribute: &Attribute) -> Result<Self> {
        match &attribute.meta {
            Meta::Path(_) => Ok(Self::default()),
            _ => attribute.parse_args(),
        }
    }

    fn parse_option(&mut self, input: ParseStream<'_>) -> Result<()> {
        let name = input.call(Ident::parse_any)?;
        let word = name.to_string();
        if word == "blocking" {
            if input.peek(Token![=]) {
                skip_value(input)?;
                return Err(Error::new(name.span(), "`blocking` is a flag; write it without a value"));
            }
            self.blocking = Some(name);
            return Ok(());
        }
        if !OPTIONS.contains(&word.as_str()) {
            let hint = nearest::hint(&word, OPTIONS);
            skip_value(input)?;
            let known = if hint.is_empty() { format!("; there are: {}", OPTIONS.join(", ")) } else { hint };
            return Err(Error::new(name.span(), format!("unknown option `{word}`{known}")));
        }
        if !input.peek(Token![=]) {
            return Err(Error::new(name.span(), format!("`{word}` needs a value: `{word} = …`")));
        }
        input.parse::<Token![=]>()?;
        if word == "crate" {
            self.facade = Some(input.call(Path::parse_mod_style)?);
            return Ok(());
        }
        self.set(name, input.parse()?)
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
            let is_topic = input.peek(LitStr)
                || (input.peek(syn::Ident) && !is_option(input))
                || input.peek(Token![::])
                || (input.peek(Token![crate]) && input.peek2(Token![::]));
            if is_topic && first {
                has_topic = true;
                args.topic = errors.take(parse_topic(input));
            } else if is_topic && input.peek(LitStr) {
                let late: LitStr = input.parse()?;
                let message = match has_topic {
                    true => "a subscription has one topic; for a second one, add another `#[subscribe]`",
                    false => "the topic comes first: `#[subscribe(\"order.placed\", option = value)]`",
                };
                errors.push(Error::new(late.span(), message));
            } else {
                let ahead = input.fork();
                let name = ahead.call(Ident::parse_any)?;
                if seen.contains(&name.to_string()) {
                    errors.push(Error::new(name.span(), format!("`{name}` is set twice")));
                    input.call(Ident::parse_any)?;
                    skip_value(input)?;
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

/// Whether an option comes next, as opposed to the path of a constant.
fn is_option(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    match ahead.call(Ident::parse_any) {
        Ok(name) => ahead.peek(Token![=]) || OPTIONS.contains(&name.to_string().as_str()),
        Err(_) => false,
    }
}

fn parse_topic(input: ParseStream<'_>) -> Result<Topic> {
    if input.peek(LitStr) {
        let topic: LitStr = input.parse()?;
        literal::check_pattern(&topic)?;
        Ok(Topic::Literal(topic))
    } else {
        input.call(Path::parse_mod_style).map(Topic::Constant)
    }
}

/// Passes over the value of an option that is not wanted.
fn skip_value(input: ParseStream<'_>) -> Result<()> {
    if input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        input.parse::<Expr>()?;
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
