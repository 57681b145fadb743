//! How long a process that competes with others may be silent before they take what it has.
//!
//! It is the lease, and longer after it was too short: a process that is kept from working for longer than its lease loses
//! its deliveries, and so does whoever has them next on the same machine. Were nothing changed by that, they would take
//! them from each other to and fro, and handle them again each time.

use std::time::Duration;

/// The most leases that it may be silent.
const MOST: u32 = 16;
/// After so many beats in a row that came in time it is half as long again: ten leases.
const CALM: u32 = 30;

/// What a process tells the others of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    lease: Duration,
    leases: u32,
    in_time: u32,
}

impl Patience {
    pub(crate) fn new(lease: Duration) -> Self {
        Self { lease, leases: 1, in_time: 0 }
    }

    pub(crate) fn time(self) -> Duration {
        self.lease * self.leases
    }

    /// A beat came in time, and everything is still here.
    pub(crate) fn kept(&mut self) {
        self.in_time += 1;
        if self.in_time >= CALM {
            (self.leases, self.in_time) = ((self.leases / 2).max(1), 0);
        }
    }

    /// It was too short: others have something by now.
    pub(crate) fn lost(&mut self) {
        (self.leases, self.in_time) = ((self.leases * 2).min(MOST), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    #[test]
    fn it_doubles_with_each_loss_up_to_a_bound_and_comes_back_after_a_calm_time() {
        let mut patience = Patience::new(LEASE);
        let mut times = Vec::new();
        for _ in 0..6 {
            patience.lost();
            times.push(patience.time() / 10);
        }
        assert_eq!(times, [2, 4, 8, 16, 16, 16].map(Duration::from_secs));
        for leases in [8, 4, 2, 1, 1] {
            (0..CALM).for_each(|_| patience.kept());
            assert_eq!(patience.time(), LEASE * leases);
        }
    }

    #[test]
    fn a_loss_begins_the_calm_time_anew() {
        let mut patience = Patience::new(LEASE);
        patience.lost();
        (1..CALM).for_each(|_| patience.kept());
        patience.lost();
        (1..CALM).for_each(|_| patience.kept());
        assert_eq!(patience.time(), LEASE * 4);
    }
}
