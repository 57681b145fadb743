//! `shop import`: places the orders of a file, a line of JSON each.
//!
//! It only saves and publishes. The consumers are in `shop serve`, which may run meanwhile or later; on a broker that keeps
//! nothing for groups that come later, it has to have run before.

use crate::order::{NewOrder, Order};
use crate::orders::{Orders, Placed};
use eventbus::broker::GroupState;
use eventbus::{BoxError, Bus, census};
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// How many orders are saved in one transaction, and published in one batch.
const BATCH: usize = 500;

/// What came of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Orders that are new.
    pub new: u64,
    /// Orders that were placed before.
    pub known: u64,
    /// Lines that were not imported.
    pub failed: u64,
}

/// Places the orders in the file at `path`. A line that is no order is reported on standard error with its number, and
/// the rest goes on. To import a file again is safe, also after an import that broke off: each order is placed once.
///
/// # Errors
/// Where the file cannot be read, or the database cannot be written.
pub async fn import(orders: &Orders, path: &Path, bar: &ProgressBar) -> Result<Report, BoxError> {
    let mut report = Report::default();
    let mut lines = Lines::open(path)?;
    bar.set_length(lines.size);
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH
            && let Some((number, line)) = lines.next()?
        {
            match order(line) {
                Ok(order) => batch.push((number, order)),
                Err(problem) => report.fail(path, number, &problem, bar),
            }
        }
        if batch.is_empty() {
            break;
        }
        let (numbers, batch): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        for (number, placed) in numbers.into_iter().zip(orders.place_all(batch).await?) {
            match placed {
                Ok(Placed::Now(_)) => report.new += 1,
                Ok(Placed::Before(_)) => report.known += 1,
                Err(error) => report.fail(path, number, &error, bar),
            }
        }
        bar.set_position(lines.read);
    }
    Ok(report)
}

/// Refuses to publish for nobody: what consumers would never see, since the broker keeps nothing for groups that it does
/// not know yet.
///
/// # Errors
/// Which consumers these are, and what to do; where the broker does not say which groups it has, that.
pub async fn expect_consumers(bus: &Bus) -> Result<(), BoxError> {
    if bus.features().start_earliest {
        return Ok(());
    }
    // One that keeps no groups is in this process, and so has no consumers.
    let Ok(groups) = bus.groups() else { return Ok(()) };
    let missing = missing(&groups.list().await?);
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join("`, `");
    Err(format!(
        "nothing is imported: the broker keeps nothing for groups that begin later, and does not know `{missing}` yet; let \
         `shop run` or `shop serve` begin them first"
    )
    .into())
}

/// The groups of the shop that a broker does not have, each on its pattern.
fn missing(kept: &[GroupState]) -> Vec<&'static str> {
    let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
    let missing = subscriptions.filter(|wanted| {
        !kept.iter().any(|kept| kept.group == wanted.group && kept.pattern == wanted.pattern)
    });
    missing.map(|wanted| &*wanted.group).collect()
}

impl Report {
    fn fail(&mut self, path: &Path, line: u64, problem: &dyn std::fmt::Display, bar: &ProgressBar) {
        self.failed += 1;
        bar.suspend(|| eprintln!("{}:{line}: {problem}", path.display()));
    }
}

/// The order in a line.
fn order(line: &[u8]) -> Result<Order, BoxError> {
    let order: NewOrder = serde_json::from_slice(line)?;
    if order.id.is_none() {
        return Err("the order has no id; importing it twice would place it twice".into());
    }
    Ok(order.check()?)
}

/// The lines of a file that are not empty, with their numbers.
struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    read: u64,
    size: u64,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(named)?;
        let size = file.metadata()?.len();
        Ok(Self { file: BufReader::new(file), line: Vec::new(), number: 0, read: 0, size })
    }

    fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        loop {
            self.line.clear();
            // By bytes, so that a line that is not UTF-8 is one bad line and not the end.
            let bytes = self.file.read_until(b'\n', &mut self.line)?;
            if bytes == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.read += bytes as u64;
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        Ok(Some((self.number, self.line.trim_ascii())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_that_a_broker_does_not_have_on_their_patterns_are_missing() {
        let all: Vec<_> = census::subscribers().iter().map(|subscriber| &subscriber.subscription).collect();
        let mut kept: Vec<_> = all.iter().map(|one| GroupState::new(&*one.group, &*one.pattern)).collect();
        assert!(missing(&kept).is_empty());
        kept[0].pattern = "order.plcaed".to_owned();
        assert_eq!(missing(&kept), [&*all[0].group]);
        assert_eq!(missing(&[]).len(), all.len());
    }
}
