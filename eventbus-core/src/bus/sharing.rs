//! How a bus shares its groups with other processes, told in one line for each of these, however many groups it has.

use crate::counted::counted;
use crate::subscription::Subscription;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be told of the subscriptions that a bus has opened.
#[derive(Default)]
pub(super) struct Sharing {
    /// The groups that another process handles, with their patterns, by who that is.
    elsewhere: BTreeMap<String, BTreeSet<(String, String)>>,
    /// The other groups, by how those share them who have them.
    ways: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Sharing {
    /// Notes a subscription: whose group it is where this process stands by, and how it is shared where several may have
    /// it.
    pub(super) fn note(
        &mut self,
        Subscription { group, pattern, .. }: &Subscription,
        owner: Option<String>,
        way: Option<&'static str>,
    ) {
        if let Some(owner) = owner {
            let groups = self.elsewhere.entry(owner).or_default();
            groups.insert((group.to_string(), pattern.to_string()));
        } else if let Some(way) = way {
            self.ways.entry(way).or_default().insert(group.to_string());
        }
    }

    /// For whom this process stands by, a line each.
    pub(super) fn elsewhere(&self) -> Vec<String> {
        let line = |(owner, groups): (&String, &BTreeSet<(String, String)>)| {
            if let (1, Some((group, pattern))) = (groups.len(), groups.first()) {
                return format!(
                    "{owner} handles the group `{group}` on \"{pattern}\", so this one stands by, and takes over once that \
                     one ends or leaves it"
                );
            }
            let names: BTreeSet<_> = groups.iter().map(|(group, _)| format!("`{group}`")).collect();
            format!(
                "{owner} handles {}: {}; this one stands by, and takes over once that one ends or leaves them",
                counted(names.len(), "group"),
                names.into_iter().collect::<Vec<_>>().join(", ")
            )
        };
        self.elsewhere.iter().map(line).collect()
    }

    /// The ways in which groups are shared, each with its groups.
    pub(super) fn ways(&self) -> impl Iterator<Item = (&'static str, String)> {
        let line = |(way, groups): (&&'static str, &BTreeSet<String>)| {
            let groups = groups.iter().map(String::as_str).collect::<Vec<_>>();
            (*way, groups.join(", "))
        };
        self.ways.iter().map(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Options;

    fn subscription(group: &'static str, pattern: &'static str) -> Subscription {
        Subscription {
            name: group.into(),
            group: group.into(),
            pattern: pattern.into(),
            event: None,
            publishes: None,
            states: &[],
            options: Options::DEFAULT,
            package: "",
            module: "",
            file: "",
            line: 0,
            docs: "",
        }
    }

    #[test]
    fn the_groups_of_one_process_are_one_line_and_are_told_of_once() {
        let mut sharing = Sharing::default();
        let other = || Some("process 7".to_owned());
        for (group, pattern) in [("stock", "a"), ("mail", "a"), ("mail", "b"), ("audit", ">")] {
            sharing.note(&subscription(group, pattern), other(), Some("in turns"));
        }
        sharing.note(&subscription("late", "a"), Some("process 8".to_owned()), Some("in turns"));
        sharing.note(&subscription("free", "a"), None, Some("in turns"));
        sharing.note(&subscription("alone", "a"), None, None);
        let lines = sharing.elsewhere();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("process 7 handles 3 groups: `audit`, `mail`, `stock`; this one stands by,")
        );
        assert!(lines[1].starts_with("process 8 handles the group `late` on \"a\", so this one stands by,"));
        assert_eq!(sharing.ways().collect::<Vec<_>>(), [("in turns", "free".to_owned())]);
    }
}
