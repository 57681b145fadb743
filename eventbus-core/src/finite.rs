//! What JSON has no form for, found without writing JSON.
//!
//! serde_json writes NaN and the infinities as `null`, so they would be handled live and come back as something else,
//! or not at all. What is nested deeper than serde_json reads again would be a dead letter in every replay, and end the
//! process where it is too deep for the stack. [`check`] walks through a value as a serializer that keeps
//! nothing: for most types the compiler leaves nothing of it, so that it can stand before every publish, also of
//! events that are never encoded.

use serde::Serialize;
use serde::ser::{self, Serializer};
use std::fmt::{self, Display};

/// How many lists and maps serde_json reads inside of each other.
const DEEPEST: u8 = 127;

/// Fails where a value holds a number that is not finite, a map with a key that is no text, or more lists and maps inside
/// of each other than are read again, or is not serialized at all.
pub(crate) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), NotJson> {
    value.serialize(Walk { is_key: false, left: DEEPEST })
}

/// What cannot be written as JSON, and where it stands in the value.
///
/// One pointer wide, so that what a step of the walk answers stays in a register and the compiler sees through it.
#[derive(Debug)]
pub(crate) struct NotJson(Box<Place>);

#[derive(Debug)]
struct Place {
    path: Vec<String>,
    what: String,
}

impl NotJson {
    #[cold]
    fn new(what: impl Display) -> Self {
        Self(Box::new(Place { path: Vec::new(), what: what.to_string() }))
    }

    #[cold]
    fn number(number: impl Display) -> Self {
        Self::new(format_args!("{number} has no form in JSON; publish an `Option` or a text in its place"))
    }

    #[cold]
    fn key() -> Self {
        Self::new(
            "the keys of a map have to be texts or numbers in JSON; publish a list of pairs in its place",
        )
    }

    #[cold]
    fn deep() -> Self {
        Self::new(format_args!(
            "more than {DEEPEST} lists and maps inside of each other are not read again; publish a list of the parts in \
             place of the tree"
        ))
    }

    #[cold]
    fn of(mut self, field: impl Into<String>) -> Self {
        self.0.path.insert(0, field.into());
        self
    }
}

impl Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { path, what } = &*self.0;
        if !path.is_empty() {
            write!(f, "`{}`: ", path.join("."))?;
        }
        f.write_str(what)
    }
}

impl std::error::Error for NotJson {}

impl ser::Error for NotJson {
    fn custom<T: Display>(what: T) -> Self {
        Self::new(what)
    }
}

/// Goes through a value, or through the key of a map.
#[derive(Clone, Copy)]
struct Walk {
    is_key: bool,
    /// How many lists and maps may follow inside.
    left: u8,
}

impl Walk {
    /// Whatever is no text and no number cannot be a key.
    #[inline]
    fn no_key(self) -> Result<Self, NotJson> {
        if self.is_key { Err(NotJson::key()) } else { Ok(self) }
    }

    /// Goes into lists or maps.
    #[inline]
    fn into(self, levels: u8) -> Result<Self, NotJson> {
        let left = self.no_key()?.left.checked_sub(levels).ok_or_else(NotJson::deep)?;
        Ok(Self { left, ..self })
    }
}

macro_rules! carried {
    ($($method:ident: $type:ty),* $(,)?) => {$(
        #[inline]
        fn $method(self, _: $type) -> Result<(), NotJson> {
            Ok(())
        }
    )*};
}

impl Serializer for Walk {
    type Ok = ();
    type Error = NotJson;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    carried! {
        serialize_bool: bool, serialize_char: char, serialize_str: &str,
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
    }

    #[inline]
    fn serialize_f32(self, number: f32) -> Result<(), NotJson> {
        if number.is_finite() { Ok(()) } else { Err(NotJson::number(number)) }
    }

    #[inline]
    fn serialize_f64(self, number: f64) -> Result<(), NotJson> {
        if number.is_finite() { Ok(()) } else { Err(NotJson::number(number)) }
    }

    /// A text that is put together only to be thrown away would be the one thing here that costs.
    #[inline]
    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Result<(), NotJson> {
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, _: &[u8]) -> Result<(), NotJson> {
        self.into(1).map(drop)
    }

    #[inline]
    fn serialize_none(self) -> Result<(), NotJson> {
        self.no_key().map(drop)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotJson> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), NotJson> {
        self.no_key().map(drop)
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NotJson> {
        self.no_key().map(drop)
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), NotJson> {
        Ok(())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotJson> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NotJson> {
        value.serialize(self.into(1)?).map_err(|error| error.of(variant))
    }

    #[inline]
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, NotJson> {
        self.into(1)
    }

    #[inline]
    fn serialize_tuple(self, _: usize) -> Result<Self, NotJson> {
        self.into(1)
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, NotJson> {
        self.into(1)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, NotJson> {
        self.into(2)
    }

    #[inline]
    fn serialize_map(self, _: Option<usize>) -> Result<Self, NotJson> {
        self.into(1)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, NotJson> {
        self.into(1)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, NotJson> {
        self.into(2)
    }
}

macro_rules! walked {
    ($($trait:ident: $method:ident),* $(,)?) => {$(
        impl ser::$trait for Walk {
            type Ok = ();
            type Error = NotJson;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotJson> {
                value.serialize(*self)
            }

            #[inline]
            fn end(self) -> Result<(), NotJson> {
                Ok(())
            }
        }
    )*};
}

walked! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

macro_rules! walked_by_name {
    ($($trait:ident),*) => {$(
        impl ser::$trait for Walk {
            type Ok = ();
            type Error = NotJson;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), NotJson> {
                value.serialize(*self).map_err(|error| error.of(name))
            }

            #[inline]
            fn end(self) -> Result<(), NotJson> {
                Ok(())
            }
        }
    )*};
}

walked_by_name!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Walk {
    type Ok = ();
    type Error = NotJson;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotJson> {
        key.serialize(Walk { is_key: true, ..*self })
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotJson> {
        value.serialize(*self)
    }

    #[inline]
    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), NotJson> {
        self.serialize_key(key)?;
        // A struct with a flattened field is written as a map as well.
        value.serialize(*self).map_err(|error| match serde_json::to_value(key) {
            Ok(serde_json::Value::String(name)) => error.of(name),
            _ => error,
        })
    }

    #[inline]
    fn end(self) -> Result<(), NotJson> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Serialize)]
    struct Reading {
        place: &'static str,
        #[serde(flatten)]
        at: At,
        values: Vec<Option<f64>>,
        by_name: BTreeMap<String, (f32, Kind)>,
    }

    #[derive(Serialize)]
    struct At {
        depth: f64,
    }

    #[derive(Serialize)]
    enum Kind {
        None,
        Newtype(f64),
        Tuple(u8, f32),
        Struct { inner: f64 },
    }

    fn reading(depth: f64, value: f64, kind: Kind) -> Reading {
        let by_name = BTreeMap::from([("a".to_owned(), (0.5, kind))]);
        Reading { place: "sea", at: At { depth }, values: vec![None, Some(value)], by_name }
    }

    #[test]
    fn a_number_that_is_not_finite_is_found_wherever_it_stands() {
        assert!(check(&reading(-0.0, f64::MIN_POSITIVE / 4.0, Kind::None)).is_ok());
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for (reading, place) in [
                (reading(odd, 1.0, Kind::None), "depth"),
                (reading(1.0, odd, Kind::None), "values"),
                (reading(1.0, 1.0, Kind::Newtype(odd)), "by_name.a.Newtype"),
                (reading(1.0, 1.0, Kind::Tuple(1, odd as f32)), "by_name.a"),
                (reading(1.0, 1.0, Kind::Struct { inner: odd }), "by_name.a.inner"),
            ] {
                let error = check(&reading).unwrap_err().to_string();
                assert!(error.contains(&format!("{odd} has no form in JSON")), "{error}");
                assert!(error.starts_with(&format!("`{place}`: ")), "{error}");
            }
        }
    }

    #[test]
    fn what_is_nested_too_deep_to_be_read_again_is_found_before_the_stack_ends() {
        #[derive(Debug, serde::Deserialize, Serialize)]
        enum Tree {
            Leaf,
            Newtype(Box<Tree>),
            Tuple(u8, Box<Tree>),
            Struct { inner: Box<Tree> },
            List(Vec<Tree>),
            Map(BTreeMap<u8, Tree>),
        }
        type Wrap = fn(Tree) -> Tree;
        let wraps: [Wrap; 5] = [
            |tree| Tree::Newtype(tree.into()),
            |tree| Tree::Tuple(1, tree.into()),
            |tree| Tree::Struct { inner: tree.into() },
            |tree| Tree::List(vec![tree]),
            |tree| Tree::Map(BTreeMap::from([(1, tree)])),
        ];
        for wrap in wraps {
            let mut tree = Tree::Leaf;
            for depth in 1..140 {
                tree = wrap(tree);
                let json = serde_json::to_vec(&tree).unwrap();
                let read = serde_json::from_slice::<Tree>(&json);
                assert_eq!(check(&tree).is_ok(), read.is_ok(), "{depth}: {read:?}");
            }
        }
        // Never dropped: that takes as much of the stack as writing it.
        let mut tree = Tree::Leaf;
        for _ in 0..1_000_000 {
            tree = Tree::Newtype(tree.into());
        }
        let tree = std::mem::ManuallyDrop::new(tree);
        assert!(check(&*tree).unwrap_err().to_string().contains("more than 127"));
    }

    #[test]
    fn what_serde_json_writes_passes_and_what_it_refuses_does_not() {
        struct NoKey;
        impl Serialize for NoKey {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(ser::Error::custom("not today"))
            }
        }
        let pairs = |error: Result<(), NotJson>, json: Result<String, serde_json::Error>| {
            assert_eq!(error.is_err(), json.is_err(), "{error:?} {json:?}");
        };
        macro_rules! same {
            ($($value:expr),* $(,)?) => {$( pairs(check(&$value), serde_json::to_string(&$value)); )*};
        }
        same! {
            json!({ "a": [1, -1, 1.5, null, "x", { "b": true }] }), u128::MAX, i128::MIN, 'x', (), b"bytes"[..], Some(1),
            BTreeMap::from([(1, 2)]), BTreeMap::from([(true, 2)]), BTreeMap::from([('c', 2)]), NoKey,
            BTreeMap::from([((1, 2), 3)]), BTreeMap::from([(vec![1], 3)]), BTreeMap::from([((), 3)]),
            BTreeMap::from([(Some(1), 3)]), BTreeMap::from([(None::<u8>, 3)]), BTreeMap::from([(u128::MAX, 3)]),
            BTreeMap::from([(std::net::Ipv4Addr::LOCALHOST, 3)]),
        }
    }
}
