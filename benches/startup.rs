//! How long a bus with 10,000 registered subscriptions takes to start, beside one that runs ten of them. Run it
//! with `cargo bench --bench startup`.
//!
//! All of them are in the registry of this program. They share one handler: what a handler of its own costs is
//! compile time and size, not start-up.

use eventbus::__private::{
    Cow, Delivery, Entry, Options, Outcome, StaticHandler, Subscriber, Subscription, Worker, submit,
};
use eventbus::Bus;
use std::time::{Duration, Instant};

struct Handler;

impl StaticHandler for Handler {
    async fn call(_delivery: &Delivery) -> Outcome {
        Outcome::Ack
    }
}

/// Registers one subscription for each number of four digits.
macro_rules! register {
    ([$a:tt $b:tt $c:tt $d:tt]) => {
        const _: () = {
            static SUBSCRIBER: Subscriber = Subscriber {
                subscription: Subscription {
                    name: Cow::Borrowed("handler"),
                    group: Cow::Borrowed(concat!("bench.", $a, $b, $c, $d)),
                    pattern: Cow::Borrowed(concat!("topic.t", $a, $b, $c, $d)),
                    event: None,
                    publishes: None,
                    states: &[],
                    options: Options::DEFAULT,
                    package: "bench",
                    module: module_path!(),
                    file: file!(),
                    line: line!(),
                    docs: "",
                },
                worker: Worker::of::<Handler>(),
            };
            submit! { Entry::Subscriber(&SUBSCRIBER) }
        };
    };
    ([$($digit:tt)*]) => {
        register!([$($digit)* 0]);
        register!([$($digit)* 1]);
        register!([$($digit)* 2]);
        register!([$($digit)* 3]);
        register!([$($digit)* 4]);
        register!([$($digit)* 5]);
        register!([$($digit)* 6]);
        register!([$($digit)* 7]);
        register!([$($digit)* 8]);
        register!([$($digit)* 9]);
    };
}
register!([]);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo test --all-targets` runs benchmarks once, to see that they work.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 9 } else { 1 };
    let first = start(Bus::builder(), 10_000).await;
    let ten: Vec<String> = (0..10).map(|number| format!("bench.{number:04}")).collect();
    let (mut all, mut few) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        all.push(start(Bus::builder(), 10_000).await);
        few.push(start(Bus::builder().only(&ten), 10).await);
    }
    all.sort_unstable();
    few.sort_unstable();
    println!("10,000 subscriptions, the first bus of the process: {first:>8.1?}");
    println!("10,000 subscriptions, median of {rounds}:            {:>8.1?}", all[rounds / 2]);
    println!("    10 of them,       median of {rounds}:            {:>8.1?}", few[rounds / 2]);
}

/// From the builder to a bus that runs.
async fn start(builder: eventbus::bus::BusBuilder, expected: usize) -> Duration {
    let started = Instant::now();
    let bus = builder.connect("memory:").await.expect("the bus connects");
    bus.start().expect("the bus starts");
    let elapsed = started.elapsed();
    assert_eq!(bus.subscriptions().len(), expected);
    bus.shutdown().await.expect("the bus ends");
    elapsed
}
