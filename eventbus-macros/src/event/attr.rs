//! `#[event(topic = "…", version = 2, upcast_from = …, key = …, subject = …, codec = …, crate = …)]`.

use crate::fallback::Errors;
use crate::topic::Topic;
use crate::{literal, nearest};
use proc_macro2::{Span, TokenStream};
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{DeriveInput, Error, Ident, LitInt, LitStr, Member, Path, Result, Token, Type};

/// What the attribute says.
#[derive(Default)]
pub(crate) struct EventAttr {
    pub(crate) topic: Option<Topic>,
    /// A mistake was told, which may be why there is no topic.
    pub(crate) is_told: bool,
    pub(crate) version: Option<(u32, Span)>,
    pub(crate) upcast_from: Option<Type>,
    pub(crate) key: Option<Field>,
    pub(crate) subject: Option<Field>,
    pub(crate) codec: Option<Type>,
    pub(crate) facade: Option<Path>,
}

/// A field of the event, or a field of a field: `id`, `0`, `address.id`.
pub(crate) struct Field(pub(crate) Punctuated<Member, Token![.]>);

impl Parse for Field {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if let Ok(quoted) = input.fork().parse::<LitStr>() {
            let message = format!("a field is named without quotes: `{}`", quoted.value());
            input.parse::<LitStr>()?;
            return Err(Error::new(quoted.span(), message));
        }
        Punctuated::parse_separated_nonempty(input).map(Self)
    }
}

/// All options, for "did you mean".
const OPTIONS: &[&str] = &["topic", "version", "upcast_from", "key", "subject", "codec", "crate"];

impl EventAttr {
    /// What can be understood; what cannot is noted.
    pub(crate) fn of(item: &DeriveInput, errors: &mut Errors) -> Self {
        let mut attr = Self::default();
        let mut seen: Vec<Ident> = Vec::new();
        for attribute in item.attrs.iter().filter(|attribute| attribute.path().is_ident("event")) {
            if let Ok(topic) = attribute.parse_args_with(leading_text) {
                let message = format!("the topic has a name here: `#[event(topic = {})]`", topic.token());
                errors.push(Error::new(topic.span(), message));
                attr.is_told = true;
                continue;
            }
            let parsed = attribute.parse_nested_meta(|meta| {
                let Some(name) = meta.path.get_ident().cloned() else {
                    return Err(meta.error(format!("the options of an event are: {}", OPTIONS.join(", "))));
                };
                if seen.contains(&name) {
                    return Err(Error::new(name.span(), format!("`{name}` is set twice")));
                }
                seen.push(name.clone());
                attr.set(&name, &meta)
            });
            if errors.take(parsed).is_none() {
                attr.is_told = true;
            }
        }
        attr
    }

    fn set(&mut self, name: &Ident, meta: &ParseNestedMeta<'_>) -> Result<()> {
        match name.to_string().as_str() {
            "topic" => self.topic = Some(Topic::parse(meta.value()?, literal::check_topic)?),
            "version" => self.version = Some(version(&meta.value()?.parse()?)?),
            "upcast_from" => self.upcast_from = Some(meta.value()?.parse()?),
            "key" => self.key = Some(meta.value()?.parse()?),
            "subject" => self.subject = Some(meta.value()?.parse()?),
            "codec" => self.codec = Some(meta.value()?.parse()?),
            "crate" => self.facade = Some(meta.value()?.call(Path::parse_mod_style)?),
            _ => return Err(nearest::unknown(name, OPTIONS)),
        }
        Ok(())
    }
}

/// The text that stands first, whatever comes after it.
fn leading_text(input: ParseStream<'_>) -> Result<LitStr> {
    let text = input.parse()?;
    input.parse::<TokenStream>()?;
    Ok(text)
}

fn version(number: &LitInt) -> Result<(u32, Span)> {
    match number.base10_parse() {
        Ok(0) => Err(Error::new(number.span(), "versions count from 1, which is the default")),
        version => version.map(|version| (version, number.span())),
    }
}
