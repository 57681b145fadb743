//! Headers: free metadata that travels beside an event's context attributes.

use smol_str::SmolStr;

/// An ordered list of names and values; names are compared without regard to ASCII case, values are UTF-8.
///
/// ```
/// use eventbus_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.insert("Tenant", "acme");
/// assert_eq!(headers.get("tenant"), Some("acme"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(SmolStr, SmolStr)>);

impl Headers {
    /// No headers; this allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The first value under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next()
    }

    /// Every value under `name`, in the order they came.
    pub fn get_all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Sets `name` to `value`, in place of all values it had.
    pub fn insert(&mut self, name: impl AsRef<str>, value: impl AsRef<str>) {
        self.remove(name.as_ref());
        self.append(name, value);
    }

    /// Adds a value under `name` and keeps those it has.
    pub fn append(&mut self, name: impl AsRef<str>, value: impl AsRef<str>) {
        self.0.push((SmolStr::new(name), SmolStr::new(value)));
    }

    /// Removes every value under `name`.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// All names and values, in the order they came.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        headers.extend(pairs);
        headers
    }
}

impl<N: AsRef<str>, V: AsRef<str>> Extend<(N, V)> for Headers {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, pairs: I) {
        for (name, value) in pairs {
            self.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Headers;

    #[test]
    fn names_ignore_case_and_insert_replaces_all() {
        let mut headers: Headers = [("A", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        assert_eq!(headers.get_all("a").collect::<Vec<_>>(), ["1", "3"]);
        headers.insert("a", "4");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "2"), ("a", "4")]);
    }
}
