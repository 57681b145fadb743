//! Whose a group is, as far as this process knows: the server gives it to one process at a time, and takes it away from
//! one that is silent. A plain value without a lock, a clock or a connection.

/// So often in a row somebody has to seem to have the group: where it is this process, the message that says so may be
/// under way for long.
const LOOKS: u32 = 10;

/// How far this process has counted what it asked the server: for messages, and to keep the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) messages: u64,
    pub(crate) keeps: u64,
}

/// What a process knows of who has its group.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    /// By this the server knows the process that has the group; none, where that is not this one.
    pin: Option<String>,
    /// What was asked before the server gave that: answers to it tell of an earlier time.
    since: Asked,
    /// The number of the latest delivery that came, where it is known that none was lost after it. The server numbers the
    /// deliveries of a group, whoever gets them.
    latest: Option<u64>,
    doubt: Option<Doubt>,
}

/// The server has taken the group away, and it is not known yet whether anybody has had anything of it since.
#[derive(Debug, Default)]
struct Doubt {
    /// How often in a row the server said that it has given something to somebody.
    seems_given: u32,
}

/// What a delivery says about those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// It is the next one of a group that is ours.
    InOrder,
    /// Something before it was lost on its way.
    WithGap,
    /// The server has given the group to this process once more, and nobody else had anything of it meanwhile.
    Again,
    /// The server has given the group to this process, and another one may have had what was here.
    Anew,
}

/// What it means that the server does not take this process for the one that has the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nothing new.
    Known,
    /// The group was taken away; whether another process has had anything since will be seen.
    Doubted,
    /// The same, and it will not be seen.
    Lost,
}

impl Tenure {
    /// By this the server knows this process, where that has the group.
    pub(crate) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// The group is this process's.
    pub(crate) fn is_ours(&self) -> bool {
        self.pin.is_some()
    }

    /// The group was this process's, and may be so still.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// A delivery came, of that number, to the process of that pin.
    pub(crate) fn delivered(&mut self, pin: Option<&str>, number: u64, asked: Asked) -> Came {
        let is_next = self.latest.map(|latest| number == latest + 1);
        self.latest = Some(number);
        match pin.filter(|pin| self.pin.as_deref() != Some(pin)) {
            Some(pin) => {
                self.pin = Some(pin.to_owned());
                self.since = asked;
                match self.doubt.take() {
                    Some(_) if is_next == Some(true) => Came::Again,
                    _ => Came::Anew,
                }
            }
            None if is_next == Some(false) => Came::WithGap,
            None => Came::InOrder,
        }
    }

    /// The server has refused an ask of this number: `is_keep`, one to keep the group, otherwise one for messages.
    pub(crate) fn refused(&mut self, is_keep: bool, number: u64) -> Refused {
        let since = if is_keep { self.since.keeps } else { self.since.messages };
        if number <= since { Refused::Known } else { self.taken() }
    }

    /// The server has taken the group away.
    pub(crate) fn taken(&mut self) -> Refused {
        if self.pin.take().is_none() {
            return Refused::Known;
        }
        if self.latest.is_none() {
            return Refused::Lost;
        }
        self.doubt = Some(Doubt::default());
        Refused::Doubted
    }

    /// The server was asked: whether somebody has the group, and the number of its latest delivery. `true`: it is known
    /// now that this process has lost the group.
    pub(crate) fn looked(&mut self, is_given: bool, latest: u64) -> bool {
        let Some(doubt) = &mut self.doubt else { return false };
        let seems_given = is_given || self.latest.is_none_or(|ours| latest != ours);
        doubt.seems_given = if seems_given { doubt.seems_given + 1 } else { 0 };
        doubt.seems_given >= LOOKS && self.doubt.take().is_some()
    }

    /// Deliveries may be counted anew from here on. `true`: with that the group is lost, since it was in doubt.
    pub(crate) fn interrupt(&mut self) -> bool {
        self.latest = None;
        self.doubt.take().is_some()
    }

    /// Another process may have the group, and everything that is here. `false`: that was known.
    pub(crate) fn lose(&mut self) -> bool {
        let (was_ours, was_in_doubt) = (self.pin.take().is_some(), self.doubt.take().is_some());
        was_ours || was_in_doubt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(messages: u64, keeps: u64) -> Asked {
        Asked { messages, keeps }
    }

    /// A group that is ours, with deliveries up to this number.
    fn ours(number: u64) -> Tenure {
        let mut tenure = Tenure::default();
        for number in 1..=number {
            tenure.delivered(Some("one"), number, asked(1, 0));
        }
        tenure
    }

    #[test]
    fn a_group_that_comes_back_with_the_next_delivery_was_nobody_elses() {
        let mut tenure = ours(7);
        assert_eq!(tenure.refused(true, 1), Refused::Doubted);
        assert!(!tenure.is_ours() && tenure.is_in_doubt());
        assert_eq!(tenure.delivered(Some("two"), 8, asked(2, 1)), Came::Again);
        assert_eq!((tenure.pin(), tenure.is_in_doubt()), (Some("two"), false));
        assert_eq!(tenure.delivered(Some("two"), 9, asked(2, 1)), Came::InOrder);
    }

    #[test]
    fn a_group_that_comes_back_with_a_later_delivery_was_perhaps_somebody_elses() {
        let mut tenure = ours(7);
        tenure.refused(true, 1);
        assert_eq!(tenure.delivered(Some("two"), 9, asked(2, 1)), Came::Anew);
        // A consumer that was made anew counts from the first one on.
        tenure.refused(true, 2);
        assert_eq!(tenure.delivered(Some("three"), 1, asked(3, 2)), Came::Anew);
    }

    #[test]
    fn a_group_that_was_not_ours_before_is_ours_anew() {
        let mut tenure = Tenure::default();
        assert_eq!(tenure.delivered(Some("one"), 1, asked(1, 0)), Came::Anew);
        assert_eq!(
            tenure.delivered(Some("other"), 2, asked(1, 0)),
            Came::Anew,
            "nobody said that it was taken"
        );
    }

    #[test]
    fn what_was_lost_on_its_way_shows_as_a_gap() {
        let mut tenure = ours(3);
        assert_eq!(tenure.delivered(Some("one"), 5, asked(1, 0)), Came::WithGap);
        assert_eq!(tenure.delivered(Some("one"), 6, asked(1, 0)), Came::InOrder);
        assert!(!tenure.interrupt(), "it is ours");
        assert_eq!(
            tenure.delivered(Some("one"), 9, asked(1, 0)),
            Came::InOrder,
            "what was lost is waited for"
        );
    }

    #[test]
    fn answers_to_what_was_asked_before_the_group_was_given_say_nothing() {
        let mut tenure = ours(1);
        tenure.refused(true, 1);
        tenure.delivered(Some("two"), 2, asked(5, 9));
        assert_eq!((tenure.refused(true, 9), tenure.refused(false, 5)), (Refused::Known, Refused::Known));
        assert_eq!(tenure.refused(false, 6), Refused::Doubted);
        assert_eq!(tenure.refused(true, 10), Refused::Known, "it is in doubt already");
    }

    #[test]
    fn a_group_that_somebody_has_for_a_while_is_lost() {
        let mut tenure = ours(4);
        for _ in 0..2 * LOOKS {
            assert!(!tenure.looked(true, 4), "it is ours");
        }
        tenure.refused(true, 1);
        for _ in 1..LOOKS {
            assert!(!tenure.looked(true, 5), "that may be under way to this process");
        }
        assert!(!tenure.looked(false, 4), "it was not");
        for _ in 1..LOOKS {
            assert!(!tenure.looked(true, 5));
        }
        assert!(tenure.looked(true, 5) && !tenure.is_in_doubt());
        // Somebody has had it, and has let it go.
        let mut tenure = ours(4);
        tenure.refused(true, 1);
        assert!((1..LOOKS).all(|_| !tenure.looked(false, 6)) && tenure.looked(false, 6));
    }

    #[test]
    fn what_is_in_doubt_does_not_survive_an_interruption() {
        let mut tenure = ours(4);
        tenure.refused(true, 1);
        assert!(tenure.interrupt() && !tenure.is_in_doubt());
        assert_eq!(tenure.delivered(Some("two"), 5, asked(1, 1)), Came::Anew);
        tenure.interrupt();
        assert_eq!(tenure.refused(true, 2), Refused::Lost, "it is not known what came since");
        assert!(!tenure.is_ours() && !tenure.lose());
    }

    /// A server and two processes of one group, of which this one is ours.
    #[derive(Default)]
    struct Group {
        deliveries: u64,
        pins: u64,
        pin: Option<(u64, bool)>,
        /// Another process has had something, or something was lost, since the latest delivery that came here.
        was_elsewhere: bool,
        asked: Asked,
    }

    #[test]
    fn whatever_happens_what_is_kept_was_nobody_elses() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut group, mut tenure, mut kept) = (Group::default(), Tenure::default(), 0);
            for _ in 0..200 {
                match random.u8(..6) {
                    // The server has waited for whoever had it.
                    0 => group.pin = None,
                    1 | 2 => {
                        let (pin, is_ours) = *group.pin.get_or_insert_with(|| {
                            group.pins += 1;
                            (group.pins, random.u8(..4) != 0)
                        });
                        group.deliveries += 1;
                        if !is_ours || random.u8(..20) == 0 {
                            group.was_elsewhere = true;
                            continue;
                        }
                        let came = tenure.delivered(Some(&pin.to_string()), group.deliveries, group.asked);
                        let was_elsewhere = std::mem::take(&mut group.was_elsewhere);
                        if matches!(came, Came::Again | Came::InOrder) {
                            assert!(!was_elsewhere, "seed {seed}: {came:?}");
                            kept += 1;
                        }
                    }
                    3 => {
                        group.asked.keeps += 1;
                        let is_known =
                            group.pin.is_some_and(|(pin, _)| tenure.pin() == Some(&pin.to_string()));
                        if !is_known {
                            tenure.refused(true, group.asked.keeps);
                        }
                    }
                    4 => {
                        tenure.looked(group.pin.is_some(), group.deliveries);
                    }
                    _ => {
                        tenure.lose();
                    }
                }
            }
            assert!(kept > 0, "seed {seed}");
        }
    }
}
