//! Ten thousand panics leak less than a megabyte. A binary of its own, since it looks at the whole process.
#![cfg(target_os = "linux")]

mod support;

use eventbus::{Bus, Delivery};
use support::bus_with;

/// The memory that the process has in use, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn ten_thousand_panics_leak_less_than_a_megabyte() {
    std::panic::set_hook(Box::new(|_| {}));
    let (bus, broker) = bus_with(Bus::builder().retries(0).dead_letter(false)).await;
    let panics = |delivery: Delivery| async move {
        if delivery.attempt() > 0 {
            panic!("at {}", delivery.envelope().id());
        }
    };
    bus.on_topic("ping.sent", panics).await.unwrap();
    bus.start().unwrap();
    let ten_thousand = async || {
        for number in 0..10_000 {
            bus.publish(&support::Ping { number }).await.unwrap();
            if number % 100 == 0 {
                broker.settled().await;
            }
        }
        broker.settled().await;
    };
    // What is needed once does not count.
    ten_thousand().await;
    let before = resident();
    ten_thousand().await;
    let leaked = resident().saturating_sub(before);
    assert!(leaked < 1 << 20, "{leaked} bytes");
}
