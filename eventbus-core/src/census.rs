//! The census: what the program declares, and what is wrong with it before anything runs.
//!
//! ```
//! for event in eventbus_core::census::events() {
//!     println!("{} v{} ({}:{})", event.topic, event.version, event.file, event.line);
//! }
//! ```

use crate::broker::{Broker, GroupState, Start};
use crate::choice::{choice, meant};
use crate::command_line::command;
use crate::counted::{count, counted};
use crate::envelope::Envelope;
use crate::error::DecodeError;
use crate::event::{Attributes, EventMeta};
use crate::foreign::{Panicked, call};
use crate::printable::printable;
use crate::registry::{self, Catalog, Subscriber};
use crate::state::States;
use crate::subscription::{Policy, StateType, Subscription};
use eventbus_grammar::{MAX_GROUP, is_group, matches, overlap};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the start-up checks found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Findings {
    /// With these no bus starts.
    pub mistakes: Vec<String>,
    /// These are likely mistakes; a [`strict`](crate::BusBuilder::strict) bus does not start with them either.
    pub warnings: Vec<String>,
}

/// Every `#[subscribe]` of the program, in the order of their places in the source.
#[must_use]
pub fn subscribers() -> &'static [&'static Subscriber] {
    registry::subscribers()
}

/// Every event type of the program, by topic and version.
#[must_use]
pub fn events() -> Vec<&'static EventMeta> {
    registry::events()
}

/// Reads an envelope with the event type that the program has for it: the type, and what its event has as key and as
/// subject. `None` where the program has no such type, or none that reads this version.
#[doc(hidden)]
#[must_use]
pub fn read(envelope: &Envelope) -> Option<(&'static EventMeta, Result<Attributes, DecodeError>)> {
    let version = envelope.version();
    let mut readers = registry::readers().iter().filter(|(event, _)| event.topic == envelope.event_type());
    let of_version = readers.clone().find(|(event, _)| event.version == version);
    let &(event, reader) = of_version.or_else(|| readers.next_back())?;
    let read = || reader(version, envelope.content_type(), envelope.payload()?);
    let panicked = |panicked: Panicked| DecodeError::Malformed { event, cause: panicked.into_text().into() };
    match call("the codec of an event", read).unwrap_or_else(|text| Err(panicked(text))) {
        Err(DecodeError::UnknownVersion { .. }) => None,
        read => Some((event, read)),
    }
}

/// Every `topics!` of the program, by package.
#[must_use]
pub fn catalogs() -> Vec<&'static Catalog> {
    registry::catalogs()
}

/// Checks what the program declares, and what does not depend on how its bus is built.
pub(crate) fn check(subscriptions: &[&Subscription]) -> Findings {
    let (events, declared) = (events(), declared_topics());
    let mut findings = Findings::default();
    findings.mistakes.extend(rival_events(&events));
    findings.mistakes.extend(shared_groups(subscriptions));
    findings.warnings.extend(unknown_topics(subscriptions, &events, &declared));
    findings.warnings.extend(unheard_events(subscriptions, &events));
    findings.warnings.extend(cycles(subscriptions));
    findings
}

/// Checks one more subscription, beside others that were checked before.
pub(crate) fn check_new(known: &[&Subscription], new: &Subscription) -> Findings {
    let mut group: Vec<_> = known.iter().copied().filter(|known| known.group == new.group).collect();
    group.push(new);
    let mut findings = Findings { mistakes: shared_groups(&group), warnings: Vec::new() };
    if !is_group(&new.group) {
        findings.mistakes.push(format!(
            "{} names the group `{}`; names of groups are 1 to {MAX_GROUP} characters of [A-Za-z0-9_.-]",
            describe(new),
            printable(&new.group)
        ));
    }
    findings.warnings.extend(unknown_topics(&[new], &events(), &declared_topics()));
    if let Some(published) = new.publishes {
        let all: Vec<_> = known.iter().copied().chain([new]).collect();
        findings.warnings.extend(cycles(&all).into_iter().filter(|circle| circle.contains(published.topic)));
    }
    findings
}

/// Checks subscriptions against the states and the broker that they are to run with; what they leave out is as `rules` say.
pub(crate) fn check_fit(
    subscriptions: &[&Subscription],
    rules: Policy,
    states: &States,
    broker: &dyn Broker,
) -> Vec<String> {
    let mut mistakes = missing_states(subscriptions, states);
    let (features, name) = (broker.features(), broker.name());
    let keeps_dead_letters = broker.dead_letters().is_some();
    for subscription in subscriptions {
        let (who, policy) = (describe(subscription), subscription.policy(rules));
        if policy.start == Start::Earliest && !features.start_earliest {
            let by = if subscription.options.start.is_some() { "" } else { ", as the bus says," };
            mistakes.push(format!(
                "{who} is to begin{by} with `start = \"earliest\"`, and the {name} broker keeps no earlier events; \
                 leave the option out, or use a broker with a log"
            ));
        }
        if subscription.pattern.contains(['*', '>']) && !features.patterns {
            mistakes.push(format!(
                "{who} listens on the pattern \"{}\", and the {name} broker has no patterns; name a topic",
                subscription.pattern
            ));
        }
        if !policy.competing && !features.key_order {
            mistakes.push(format!(
                "{who} needs events of one key in their order, and the {name} broker keeps none; set `competing` where \
                 their order means nothing, or use a broker that keeps it (SNS and SQS do with `?fifo=true`)"
            ));
        }
        if policy.dead_letter && !keeps_dead_letters {
            mistakes.push(format!(
                "{who} wants what it gives up to be kept, and the {name} broker keeps no dead letters; set \
                 `dead_letter = false` to have it logged and dropped, or use a broker that keeps them"
            ));
        }
    }
    mistakes
}

/// Checks that packages which were meant to be linked have registered something.
pub(crate) fn check_packages(expected: &[String]) -> Vec<String> {
    let known: BTreeSet<_> =
        registry::subscribers().iter().map(|subscriber| subscriber.subscription.package).collect();
    expected
        .iter()
        .filter(|package| !known.contains(package.as_str()))
        .map(|package| {
            let krate = package.replace('-', "_");
            format!(
                "the package `{package}` is expected and has registered no subscriber: a crate that no code names is \
                 not linked, so name it with `eventbus::link!({krate});` in `main.rs`, and check its spelling; \
                 of those that have registered some, {}",
                choice(package, known.iter().copied())
            )
        })
        .collect()
}

/// `; …`: how to link the package of a group that nothing has, where nothing of it is registered. A constant such as
/// `handlers::ship::SUBSCRIBER` names a group and links nothing.
#[doc(hidden)]
pub fn unlinked(group: &str) -> String {
    let package = group.rsplit_once('.').map(|(package, _)| package);
    let registered =
        |subscriber: &&Subscriber| package.is_none_or(|name| subscriber.subscription.package == name);
    if registry::subscribers().iter().any(registered) {
        return String::new();
    }
    let krate = package.map_or_else(|| "its_name".to_owned(), |package| package.replace('-', "_"));
    format!(
        "; a crate that no code names is not linked: if the subscriber stands in one, write \
         `eventbus::link!({});`",
        printable(krate)
    )
}

/// Checks that groups which an option names exist.
pub(crate) fn check_groups(option: &str, chosen: &[String]) -> Vec<String> {
    let known: BTreeSet<_> =
        registry::subscribers().iter().map(|subscriber| &*subscriber.subscription.group).collect();
    chosen
        .iter()
        .filter(|group| !known.contains(group.as_str()))
        .map(|group| {
            let (choice, unlinked) = (choice(group, known.iter().copied()), unlinked(group));
            let group = printable(group);
            format!("`{option}` names the group `{group}`, and no subscriber has it; {choice}{unlinked}")
        })
        .collect()
}

/// Finds the groups that a broker keeps and that no subscription has: most likely renamed, or removed. Whether what they
/// have can be given to another one is up to the broker (`renames`).
pub(crate) fn orphans(
    kept: &[GroupState],
    subscriptions: &[&Subscription],
    renames: bool,
    address: Option<&str>,
) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<&GroupState>> = BTreeMap::new();
    for state in kept {
        groups.entry(&state.group).or_default().push(state);
    }
    let has = |group: &str| subscriptions.iter().any(|subscription| subscription.group == group);
    groups
        .iter()
        .filter(|(group, states)| !has(group) && !states.iter().any(|state| state.active))
        .map(|(group, states)| {
            let heir = subscriptions
                .iter()
                .filter(|new| !groups.contains_key(&*new.group))
                .filter(|new| states.iter().any(|state| state.pattern == new.pattern))
                .min_by_key(|new| eventbus_grammar::distance(group, &new.group));
            let (renamed, to) = match heir {
                Some(new) => {
                    (format!("; was it renamed to `{}` ({})?", new.group, new.location()), &*new.group)
                }
                None => (";".to_owned(), "<new>"),
            };
            let backlog: u64 = states.iter().map(|state| state.backlog).sum();
            let patterns: BTreeSet<_> =
                states.iter().map(|state| format!("\"{}\"", printable(&state.pattern))).collect();
            let moved = command(address, &["groups", "move", group, to]);
            let dropped = command(address, &["groups", "drop", group]);
            // The names are the broker's, whoever wrote them there.
            let group = printable(group);
            let kept = if renames {
                format!(
                    "move it with {moved} before this program runs for long, since what the new group handles meanwhile is \
                     handled again,"
                )
            } else {
                format!("let a subscription have the group `{group}` until that is handled,")
            };
            format!(
                "the broker keeps the group `{group}` on {} with a backlog of {}, and no subscriber of this \
                 program has it{renamed} {kept} or drop it with {dropped} (in code: `bus.groups()`)",
                patterns.into_iter().collect::<Vec<_>>().join(", "),
                counted(backlog, "event")
            )
        })
        .collect()
}

/// Finds what groups of these subscriptions have left over on patterns that none of them listens on any more, since a
/// topic was renamed or a pattern was changed. What `overlaps` with a pattern of the group is taken over when the group
/// begins, and only what is left of it then is left over.
pub(crate) fn left_over(
    kept: &[GroupState],
    subscriptions: &[&Subscription],
    overlaps: bool,
    address: Option<&str>,
) -> Vec<String> {
    let of_group = |group: &str| {
        let of_group = subscriptions.iter().filter(move |subscription| subscription.group == *group);
        of_group.map(|subscription| &*subscription.pattern).collect::<BTreeSet<_>>()
    };
    let left = kept.iter().filter(|state| !state.active && state.backlog > 0).filter_map(|state| {
        let ours = of_group(&state.group);
        let taken_over = ours.iter().any(|ours| overlap(ours, &state.pattern));
        let is_left = !ours.is_empty() && !ours.contains(&*state.pattern) && taken_over == overlaps;
        is_left.then_some((state, ours))
    });
    left.map(|(GroupState { group, pattern, backlog, parked, .. }, ours)| {
        let parked = match parked {
            0 => String::new(),
            parked => format!(", of which {} for a retry,", if *parked == 1 { "1 waits".to_owned() } else { format!("{} wait", count(parked)) }),
        };
        let ours: Vec<_> = ours.iter().map(|pattern| format!("\"{pattern}\"")).collect();
        let dropped = command(address, &["groups", "drop", group, "--pattern", pattern]);
        let them = if *backlog == 1 { "it" } else { "them" };
        format!(
            "the group `{group}` has a backlog of {}{parked} left over from when it listened on \"{pattern}\", and now it \
             listens on {}: nobody takes {them}. Was the topic renamed? Listen on \"{pattern}\" as well until the backlog \
             is handled, or drop {them} with {dropped} (in code: `bus.groups()`)",
            counted(backlog, "event"),
            ours.join(", ")
        )
    })
    .collect()
}

/// Why a subscription that is made at run time needs a name for its group.
pub(crate) fn nameless(subscription: &Subscription, broker: &str) -> String {
    format!(
        "the subscription to \"{}\" at {}:{} has no group, and the {broker} broker keeps how far each group has come: a \
         name made of a source line is another one as soon as lines move, and what was unfinished stays behind; name \
         the group with `.group(\"…\")`",
        subscription.pattern, subscription.file, subscription.line
    )
}

/// Why a bus whose subscriptions have the groups `known` has none of the group `wanted`.
pub(crate) fn unknown_group<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> String {
    if registry::subscribers().iter().any(|subscriber| subscriber.subscription.group == wanted) {
        return "this bus does not run it; name it in `only` too".to_owned();
    }
    format!("no subscription of this bus has this group; {}{}", choice(wanted, known), unlinked(wanted))
}

/// The sentence for a bus that has nothing to run.
pub(crate) const NO_SUBSCRIPTIONS: &str = "there are no subscriptions: a crate that no code names is not linked, so if \
     your subscribers are in a library (also in the `src/lib.rs` beside this `main.rs`), name it with \
     `eventbus::link!(that_crate);`; a program that only publishes neither starts nor runs its bus, and ends it by \
     `bus.shutdown().await`";

/// Every topic that some crate declares with `topics!`.
fn declared_topics() -> Vec<&'static str> {
    catalogs().into_iter().flat_map(|catalog| catalog.topics).copied().collect()
}

fn rival_events(events: &[&EventMeta]) -> Vec<String> {
    let rivals = events.windows(2).filter(|pair| {
        (pair[0].topic, pair[0].version) == (pair[1].topic, pair[1].version)
            && pair[0].schema != pair[1].schema
    });
    rivals
        .map(|pair| {
            format!(
                "two event types of different shape claim \"{}\" v{}:\n{}\n{}\n\
                 share one type between the crates, or give one a topic or a `version` of its own",
                pair[0].topic,
                pair[0].version,
                declared_at(pair[0]),
                declared_at(pair[1])
            )
        })
        .collect()
}

fn shared_groups(subscriptions: &[&Subscription]) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<&Subscription>> = BTreeMap::new();
    for subscription in subscriptions {
        groups.entry(&subscription.group).or_default().push(subscription);
    }
    let mut mistakes = Vec::new();
    for (group, members) in groups {
        for (place, left) in members.iter().enumerate() {
            for right in &members[place + 1..] {
                if overlap(&left.pattern, &right.pattern) {
                    mistakes.push(format!(
                        "two subscriptions share the group `{group}`, so each would get only some of the events:\n\
                         {}\n{}\ngive one of them another group: `{}`",
                        listens_at(left),
                        listens_at(right),
                        if left.package.is_empty() || right.package.is_empty() {
                            ".group(\"…\")"
                        } else {
                            "group = \"…\""
                        }
                    ));
                }
            }
        }
    }
    mistakes
}

fn missing_states(subscriptions: &[&Subscription], states: &States) -> Vec<String> {
    let mut missing: BTreeMap<&str, (&StateType, Vec<String>)> = BTreeMap::new();
    for subscription in subscriptions {
        for state in subscription.states.iter().flatten().filter(|state| !states.contains(state)) {
            let (_, takers) = missing.entry((state.name)()).or_insert_with(|| (state, Vec::new()));
            takers.push(describe(subscription));
        }
    }
    missing
        .into_iter()
        .map(|(name, (state, takers))| {
            let (remedy, takers) = (states.remedy(state), takers.join("\n"));
            format!("the state `{name}` is missing: {remedy}. It is taken by:\n{takers}")
        })
        .collect()
}

fn unknown_topics(subscriptions: &[&Subscription], events: &[&EventMeta], declared: &[&str]) -> Vec<String> {
    let known: BTreeSet<_> = events.iter().map(|event| event.topic).chain(declared.iter().copied()).collect();
    subscriptions
        .iter()
        .filter(|subscription| subscription.event.is_none())
        .filter(|subscription| !known.iter().any(|topic| matches(&subscription.pattern, topic)))
        .filter_map(|subscription| {
            let hint = meant(&subscription.pattern, known.iter().copied());
            (!hint.is_empty()).then(|| {
                format!(
                    "no event of this program has a topic that {} listens on (\"{}\"){hint}",
                    describe(subscription),
                    subscription.pattern
                )
            })
        })
        .collect()
}

fn unheard_events(subscriptions: &[&Subscription], events: &[&EventMeta]) -> Vec<String> {
    let heard = |topic: &str| subscriptions.iter().any(|subscription| matches(&subscription.pattern, topic));
    let mut unheard: Vec<_> = events.iter().filter(|event| !heard(event.topic)).collect();
    unheard.dedup_by_key(|event| event.topic);
    unheard
        .into_iter()
        .filter_map(|event| {
            let hint = meant(event.topic, subscriptions.iter().map(|subscription| &*subscription.pattern));
            (!hint.is_empty())
                .then(|| format!("nobody here listens on \"{}\" ({}){hint}", event.topic, declared_at(event)))
        })
        .collect()
}

/// Topics that cause themselves, by the events that handlers return.
fn cycles(subscriptions: &[&Subscription]) -> Vec<String> {
    let mut found: BTreeSet<Vec<&str>> = BTreeSet::new();
    let publishing: Vec<_> = subscriptions
        .iter()
        .filter_map(|subscription| Some((*subscription, subscription.publishes?)))
        .collect();
    for (_, start) in &publishing {
        // Each circle is found from each of its topics, and told from the first one in the alphabet.
        if let Some(path) = circle(start.topic, &publishing)
            && path.iter().min() == path.first()
        {
            found.insert(path);
        }
    }
    found
        .into_iter()
        .map(|path| {
            format!(
                "these topics cause themselves: {0} → {1}; an event runs in this circle until the `causation_limit` \
                 ends it, unless some handler returns `None`",
                path.join(" → "),
                path[0]
            )
        })
        .collect()
}

/// The shortest way from a topic back to itself.
fn circle<'a>(start: &'a str, publishing: &[(&Subscription, &'a EventMeta)]) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::from([start]);
    let mut paths = VecDeque::from([vec![start]]);
    while let Some(path) = paths.pop_front() {
        let topic = path[path.len() - 1];
        for (_, next) in publishing.iter().filter(|(subscription, _)| matches(&subscription.pattern, topic)) {
            if next.topic == start {
                return Some(path);
            }
            if seen.insert(next.topic) {
                paths.push_back([path.as_slice(), &[next.topic]].concat());
            }
        }
    }
    None
}

fn describe(subscription: &Subscription) -> String {
    format!("`{}` ({})", subscription.name, subscription.location())
}

fn listens_at(subscription: &Subscription) -> String {
    format!("{} on \"{}\"", describe(subscription), subscription.pattern)
}

fn declared_at(event: &EventMeta) -> String {
    format!("`{}` ({}:{})", event.name, event.file, event.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Options;

    const fn event(topic: &'static str) -> EventMeta {
        EventMeta { topic, name: "", version: 1, keyed: true, schema: 0, package: "", file: "", line: 0 }
    }

    fn publishing(pattern: &'static str, published: &'static EventMeta) -> Subscription {
        Subscription {
            name: pattern.into(),
            group: pattern.into(),
            pattern: pattern.into(),
            event: None,
            publishes: Some(published),
            states: &[],
            options: Options::DEFAULT,
            package: "",
            module: "",
            file: "",
            line: 0,
            docs: "",
        }
    }

    fn kept(group: &str, pattern: &str, active: bool) -> GroupState {
        GroupState { backlog: 7, active, ..GroupState::new(group, pattern) }
    }

    #[test]
    fn a_group_that_nobody_has_is_an_orphan_and_its_heir_is_the_new_one_on_its_pattern() {
        static A: EventMeta = event("a");
        let group = |pattern: &'static str, group: &'static str| {
            let mut subscription = publishing(pattern, &A);
            subscription.group = group.into();
            subscription
        };
        let subscriptions = [group("a", "shop.mails"), group("a", "shop.stock"), group("b", "shop.other")];
        let subscriptions: Vec<_> = subscriptions.iter().collect();
        let states =
            [kept("shop.stock", "a", false), kept("elsewhere", "a", true), kept("shop.mail", "a", false)];
        let found = orphans(&states, &subscriptions, true, None);
        assert_eq!(found.len(), 1, "{found:?}");
        for words in [
            "the group `shop.mail` on \"a\" with a backlog of 7 events",
            "was it renamed to `shop.mails` (:0)?",
            "`groups move shop.mail shop.mails` on the command line before this program runs for long",
            "what the new group handles meanwhile is handled again",
            "`groups drop shop.mail`",
        ] {
            assert!(found[0].contains(words), "{words}: {found:?}");
        }
        let gone = [kept("gone", "c", false)];
        let found = orphans(&gone, &subscriptions, true, Some("sqlite:/srv/shop.db"));
        assert!(
            !found[0].contains("renamed")
                && found[0].contains("`eventbus --url sqlite:/srv/shop.db groups move gone '<new>'`"),
            "{found:?}"
        );
        let found = orphans(&gone, &subscriptions, false, None);
        assert!(
            !found[0].contains("groups move")
                && found[0].contains(
                    "let a subscription have the group `gone` until that is handled, or drop it with"
                )
                && found[0].contains("`groups drop gone`"),
            "{found:?}"
        );
    }

    #[test]
    fn what_a_group_has_left_over_on_an_earlier_pattern_is_named_with_what_to_do() {
        static A: EventMeta = event("a");
        let mut subscription = publishing("shop.a", &A);
        subscription.group = "mail".into();
        let states = [
            kept("mail", "shop.*", false),
            kept("mail", "shop.a", false),
            kept("mail", "shop.c", true),
            GroupState { backlog: 0, ..kept("mail", "shop.>", false) },
            GroupState { backlog: 1, parked: 1, ..kept("mail", "shop.b", false) },
            kept("other", "shop.*", false),
        ];
        let renamed = left_over(&states, &[&subscription], false, None);
        let changed = left_over(&states, &[&subscription], true, None);
        assert_eq!((renamed.len(), changed.len()), (1, 1), "{renamed:?} {changed:?}");
        for (found, words) in [
            (
                &renamed[0],
                "the group `mail` has a backlog of 1 event, of which 1 waits for a retry, left over",
            ),
            (&renamed[0], "listened on \"shop.b\", and now it listens on \"shop.a\""),
            (&renamed[0], "`groups drop mail --pattern shop.b` on the command line"),
            (&changed[0], "7 events left over from when it listened on \"shop.*\""),
            (&changed[0], "`groups drop mail --pattern 'shop.*'`"),
        ] {
            assert!(found.contains(words), "{words}: {found}");
        }
    }

    #[test]
    fn a_circle_is_found_beside_a_way_that_ends() {
        static A: EventMeta = event("a");
        static B: EventMeta = event("b");
        static C: EventMeta = event("c");
        let subscriptions = [publishing("a", &B), publishing("a", &C), publishing("*", &A)];
        let found = cycles(&subscriptions.iter().collect::<Vec<_>>());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a → a"), "{found:?}");
        let ends = [publishing("a", &B), publishing("a", &C), publishing("c", &A)];
        let found = cycles(&ends.iter().collect::<Vec<_>>());
        assert!(found.len() == 1 && found[0].contains("a → c → a"), "{found:?}");
        assert!(cycles(&[&publishing("a", &B), &publishing("b", &C)]).is_empty());
    }
}
