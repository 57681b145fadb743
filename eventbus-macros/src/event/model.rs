//! An event as the macro sees it.

use super::attr::{EventAttr, Field};
use crate::fallback::Errors;
use crate::topic::Topic;
use quote::ToTokens;
use syn::{Data, DeriveInput, Error, Fields, Ident, Member, Path, Result, Type};

/// A type that can be an event.
pub(crate) struct Event {
    pub(crate) name: Ident,
    /// None where a mistake was told; whoever uses the event is told nothing more of it.
    pub(crate) topic: Option<Topic>,
    pub(crate) version: u32,
    pub(crate) upcast_from: Option<Type>,
    pub(crate) key: Option<Field>,
    pub(crate) subject: Option<Field>,
    pub(crate) codec: Option<Type>,
    pub(crate) facade: Option<Path>,
    /// A hash of the shape, equal for equal shapes.
    pub(crate) schema: u64,
}

impl Event {
    /// The event, with what is wrong in its other options noted and left out: who uses it sees no other error.
    pub(crate) fn new(item: &DeriveInput, attr: EventAttr, errors: &mut Errors) -> Result<Self> {
        let name = item.ident.clone();
        if let Some(parameter) = item.generics.params.first() {
            let message =
                "an event has one topic, so its type cannot be generic; derive `Event` for a type of its own";
            return Err(Error::new_spanned(parameter, message));
        }
        if let Data::Union(_) = item.data {
            return Err(Error::new(name.span(), "an event is a struct or an enum"));
        }
        if attr.topic.is_none() && !attr.is_told {
            let message = "an event needs a topic: `#[event(topic = \"order.placed\")]`";
            errors.push(Error::new(name.span(), message));
        }
        let chain = errors.take(chain(&name, attr.version, attr.upcast_from));
        let (version, upcast_from) = chain.unwrap_or((1, None));
        // What the fields of a field are, the compiler knows.
        let mut field = |field: Option<Field>| {
            field.filter(|field| errors.take(check_member(item, &field.0[0])).is_some())
        };
        let (key, subject) = (field(attr.key), field(attr.subject));
        Ok(Self {
            topic: attr.topic,
            version,
            upcast_from,
            key,
            subject,
            codec: attr.codec,
            facade: attr.facade,
            schema: schema(&item.data),
            name,
        })
    }
}

/// Checks that every version but the first says how it reads the one before.
fn chain(
    name: &Ident,
    version: Option<(u32, proc_macro2::Span)>,
    upcast_from: Option<Type>,
) -> Result<(u32, Option<Type>)> {
    match (version, upcast_from) {
        (Some((version, span)), None) if version > 1 => {
            let before = version - 1;
            let message = format!(
                "v{version} must say how to read v{before}: add `upcast_from = {name}V{before}` and \
                 `impl From<{name}V{before}> for {name}`"
            );
            Err(Error::new(span, message))
        }
        (None | Some((1, _)), Some(old)) => {
            let message = "version 1 is the first, so there is nothing to upcast from; add `version = 2`";
            Err(Error::new_spanned(old, message))
        }
        (version, upcast_from) => Ok((version.map_or(1, |(version, _)| version), upcast_from)),
    }
}

/// Checks that a key or a subject is a field.
fn check_member(item: &DeriveInput, member: &Member) -> Result<()> {
    let Data::Struct(data) = &item.data else {
        let message = "a key or a subject is a field of a struct; for an enum, implement `Event` by hand";
        return Err(Error::new_spanned(member, message));
    };
    if data.fields.members().any(|field| field == *member) {
        return Ok(());
    }
    let fields: Vec<String> =
        data.fields.members().map(|field| field.to_token_stream().to_string()).collect();
    let known: Vec<&str> = fields.iter().map(String::as_str).collect();
    let word = member.to_token_stream().to_string();
    let hint = crate::nearest::hint(&word, &known);
    Err(Error::new_spanned(member, format!("`{}` has no field `{word}`{hint}", item.ident)))
}

/// FNV-1a over the names and types of all fields.
fn schema(data: &Data) -> u64 {
    let mut shape = String::new();
    let mut add = |fields: &Fields| {
        for field in fields {
            let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
            shape.push_str(&format!("{name}:{};", field.ty.to_token_stream()));
        }
    };
    match data {
        Data::Struct(data) => add(&data.fields),
        Data::Enum(data) => data.variants.iter().for_each(|variant| {
            add(&variant.fields);
        }),
        Data::Union(_) => {}
    }
    if let Data::Enum(data) = data {
        data.variants.iter().for_each(|variant| shape.push_str(&format!("|{}", variant.ident)));
    }
    shape
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
