//! Power cuts, simulated: of what was written since the last sync, any sector may be there, or not, or be noise.

mod support;

use eventbus::Bus;
use eventbus::broker::AuditQuery;
use eventbus::broker::Broker;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::{Log, Ping};

const CUTS: u64 = 100;
/// What a disk writes as a whole, or tears.
const SECTOR: usize = 512;

fn wal(log: &Path) -> PathBuf {
    log.with_extension("db-wal")
}

/// Publishes and awaits `count` further pings, some alone and some together.
async fn publish(bus: &Bus, random: &mut fastrand::Rng, published: &mut u64, count: u64) {
    let end = *published + count;
    while *published < end {
        let next = (*published + random.u64(1..8)).min(end);
        for result in bus.publish_all((*published..next).map(|number| Ping { number })).await {
            result.unwrap();
        }
        *published = next;
    }
}

/// What became of bytes that were written and not synced.
fn tear(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut torn = bytes.to_vec();
    // Some of it may have come to the disk in order.
    let in_order = random.usize(..=torn.len());
    for sector in torn[in_order..].chunks_mut(SECTOR) {
        match random.u8(..4) {
            0 => sector.fill(0),
            1 => random.fill(sector),
            _ => {}
        }
    }
    torn.truncate(random.usize(in_order..=torn.len()));
    torn
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged_and_the_file_opens() {
    let seed =
        std::env::var("EVENTBUS_CUT_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{CUTS} power cuts from seed {seed} (EVENTBUS_CUT_SEED)");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut acknowledged_in_all, mut kept_in_all) = (0, 0);
    for _ in 0..CUTS {
        let (log, mut published) = (Log::new(), 0);
        let bus = log.bus().await;
        let count = random.u64(1..40);
        publish(&bus, &mut random, &mut published, count).await;
        // Everything up to here was acknowledged, so all of this was synced.
        let acknowledged = published;
        let synced = fs::read(wal(&log.path())).unwrap();
        let database = fs::read(log.path()).unwrap();
        let count = random.u64(1..40);
        publish(&bus, &mut random, &mut published, count).await;
        let written = fs::read(wal(&log.path())).unwrap();
        assert!(
            written.starts_with(&synced) && fs::read(log.path()).unwrap() == database,
            "nothing was rewritten"
        );
        drop(bus);

        let cut = Log::new();
        fs::write(cut.path(), &database).unwrap();
        let torn = tear(&written[synced.len()..], &mut random);
        fs::write(wal(&cut.path()), [synced, torn].concat()).unwrap();
        let broker = cut.broker().await;
        assert_eq!(broker.verify().await.unwrap(), [] as [&str; 0]);
        let mut all = AuditQuery::default();
        all.limit = usize::MAX;
        let kept = broker.audit_log().unwrap().query(all).await.unwrap();
        let numbers: Vec<_> =
            kept.iter().map(|recorded| recorded.envelope.event::<Ping>().unwrap().number).collect();
        let kept = numbers.len() as u64;
        assert!(numbers.into_iter().eq(0..kept), "what is there is what was published, in order");
        assert!(
            (acknowledged..=published).contains(&kept),
            "{acknowledged} were acknowledged, {kept} are there"
        );
        acknowledged_in_all += acknowledged;
        kept_in_all += kept;
    }
    println!("{acknowledged_in_all} acknowledged before the cuts, {kept_in_all} there after them");
}

/// How many syncs this takes is seen from outside:
/// `strace -f -c -e trace=fdatasync,fsync <this binary> --ignored --exact sixty_four_publishers`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "to be run under strace"]
async fn sixty_four_publishers() {
    const EACH: u64 = 200;
    let log = Log::new();
    let bus = log.bus().await;
    let began = Instant::now();
    let publishers: Vec<_> = (0..64)
        .map(|publisher| {
            let bus = bus.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    bus.publish(&Ping { number: publisher * EACH + number }).await.unwrap();
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    println!("{} events in {:?}", 64 * EACH, began.elapsed());
}
