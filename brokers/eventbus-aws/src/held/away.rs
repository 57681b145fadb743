//! What waits for its attempt longer than SQS hides anything: the queue has it meanwhile, and gives it out again.

use super::{Arrival, Held, Named, Waiting};
use crate::batches::MOST;
use crate::hidden::Hidden;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What comes back so short before its attempt is due is not taken for what has waited for that.
const LATE: Duration = Duration::from_secs(1);

impl Held {
    /// Whether it is one that was given back while it waits for its attempt, and that it comes back in time. Then it goes on
    /// waiting, as if it had never been away.
    pub(super) fn comes_back(&mut self, arrival: &Arrival, hidden: Hidden, now: Instant) -> bool {
        let mut away = self.entries.iter_mut().filter(|(_, entry)| entry.away);
        let Some((token, entry)) = away.find(|(_, entry)| entry.id == arrival.id) else { return false };
        if entry.due.is_none_or(|due| due <= now + LATE) {
            // It may have been asked for meanwhile, and not been here.
            let token = *token;
            self.entries.remove(&token);
            return false;
        }
        (entry.hidden, entry.away, entry.delivered) = (hidden, false, arrival.attempt);
        entry.handle = arrival.handle.as_str().into();
        true
    }

    /// Gives the queue back what waits for its attempt longer than SQS hides it, in batches: it comes again, and is hidden
    /// for as long once more. What is behind it in its lane goes with it, and comes again behind it. What is dropped comes
    /// back.
    pub(crate) fn next_returns(&mut self, now: Instant) -> (Vec<Vec<Named>>, Vec<Waiting>) {
        let mut returned: Vec<Named> = Vec::new();
        let mut behind = Vec::new();
        let far = self.entries.iter().filter(|(_, entry)| {
            let due = entry.due.filter(|due| *due > now + LATE && !entry.settled && !entry.away);
            due.is_some_and(|due| entry.hidden.ends_before(due, self.visibility, now))
        });
        let far: Vec<_> = far.map(|(token, _)| *token).collect();
        for token in &far {
            let Some(entry) = self.entries.get_mut(token) else { continue };
            entry.away = true;
            entry.hidden.end(now);
            returned.push((*token, Arc::clone(&entry.handle)));
            let Some(lane) = entry.lane else { continue };
            behind.extend(
                self.entries
                    .iter()
                    .filter(|(other, entry)| {
                        **other > *token && entry.lane == Some(lane) && !entry.settled && !entry.away
                    })
                    .map(|(other, entry)| (*other, Arc::clone(&entry.handle))),
            );
        }
        returned.extend(behind.iter().cloned());
        let behind: Vec<_> = behind.into_iter().map(|(token, _)| token).collect();
        let dropped = self.lose(&behind);
        (returned.chunks(MOST).map(<[_]>::to_vec).collect(), dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::tests::{VISIBILITY, arrival};

    #[test]
    fn what_waits_longer_than_sqs_hides_it_is_given_back_and_goes_on_waiting_when_it_comes_again() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let (mut held, begun) = (Held::new(VISIBILITY), Instant::now());
        held.arrive(arrival(1, None), begun, begun);
        let token = held.take(1)[0].0;
        let due = begun + HOUR * 30;
        assert!(held.park(token, due, begun));
        let (mut now, mut returns) = (begun, 0);
        while now < due {
            now += VISIBILITY / 12;
            for (token, _, seconds) in held.next_extensions(now).concat() {
                held.extended(token, Some(now + Duration::from_secs(seconds.unsigned_abs().into())));
            }
            let (batches, dropped) = held.next_returns(now);
            assert!(dropped.is_empty() && held.lapse(now).is_empty());
            if !batches.is_empty() {
                returns += 1;
                assert_eq!(batches.concat().len(), 1);
                assert!(!held.holds(token, now), "anybody may have it");
                let asked = now + Duration::from_secs(1);
                let again = Arrival { handle: format!("again{returns}"), attempt: 2, ..arrival(1, None) };
                held.arrive(again, asked, asked);
                now = asked;
            }
            assert!(held.holds(token, now), "after {:?}", now - begun);
            assert_eq!((held.at_hand(), held.count()), (0, 1), "nobody gets it before it is due");
        }
        assert_eq!(returns, 2);
        assert!(held.settle(token, now));
        assert_eq!(&*held.next_deletes()[0].1, "again2", "by the last delivery");
    }

    #[test]
    fn what_was_given_back_and_does_not_come_in_time_is_anybodys_and_a_delivery_of_its_own_when_it_comes() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let (mut held, begun) = (Held::new(VISIBILITY), Instant::now());
        for offset in [1, 2, 3] {
            held.arrive(arrival(offset, Some(7)), begun, begun);
        }
        let token = held.take(1)[0].0;
        let due = begun + HOUR * 12 + Duration::from_secs(10);
        assert!(held.park(token, due, begun));
        let soon = begun + Duration::from_secs(15);
        for (token, _, seconds) in held.next_extensions(soon).concat() {
            // Those behind it are hidden as long as it.
            let _ = seconds;
            held.extended(token, Some(begun + HOUR * 12));
        }
        let end = begun + HOUR * 12 - Duration::from_secs(5);
        let (batches, dropped) = held.next_returns(end);
        assert_eq!((batches.concat().len(), dropped.len(), held.count()), (3, 2, 1), "its lane goes with it");
        assert!(held.lapse(due - LATE).is_empty() && held.count() == 1);
        held.arrive(arrival(1, Some(7)), due - LATE, due - LATE);
        assert_eq!((held.at_hand(), held.count()), (1, 1), "it comes too late, and is new");
        let again = held.take(1)[0].0;
        assert!(!held.holds(token, due) && held.holds(again, due));
        assert!(held.put_back(token, waiting()).is_some(), "it is forgotten");
    }

    #[test]
    fn what_is_hidden_for_hours_from_the_beginning_is_not_given_back_before_they_are_over() {
        let (mut held, begun) = (Held::new(Duration::from_secs(12 * 3_600)), Instant::now());
        held.arrive(arrival(1, None), begun, begun);
        let token = held.take(1)[0].0;
        assert!(held.park(token, begun + Duration::from_secs(60), begun));
        assert!(held.next_extensions(begun).is_empty() && held.next_returns(begun).0.is_empty());
    }

    fn waiting() -> Waiting {
        let Arrival { envelope, offset, attempt, .. } = arrival(1, None);
        Waiting { envelope, offset, attempt }
    }
}
