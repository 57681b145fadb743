//! Addresses of brokers, each with a place on its server where no other test leaves anything.

#[allow(unreachable_pub, reason = "tests of brokers share it in another way")]
#[path = "../../../../brokers/eventbus-server/tests/support/servers.rs"]
mod servers;

pub(crate) use servers::setting;
use std::path::Path;

/// The embedded log in a folder.
pub(crate) fn log(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("shop.db").display())
}

pub(crate) fn nats() -> String {
    let place = place();
    with(&server("nats"), &format!("stream={place}&prefix={place}"))
}

pub(crate) fn redis() -> String {
    with(&server("redis"), &format!("prefix={}", place()))
}

pub(crate) fn valkey() -> String {
    with(&server("valkey"), &format!("prefix={}", place()))
}

pub(crate) fn rabbitmq() -> String {
    with(&server("rabbitmq"), &format!("exchange={}", place()))
}

pub(crate) fn kafka() -> String {
    with(&server("kafka"), &format!("prefix={}.", place()))
}

/// SNS and SQS, with FIFO topics and queues.
pub(crate) fn aws() -> String {
    // A call that waits as its process ends takes events with it, until they were hidden for their time.
    let times = "visibility_timeout=10s&wait_time=1s";
    let options = format!("fifo=true&prefix={}&{times}&endpoint={}", place(), server("aws"));
    with("sns://test:test@us-east-1", &options)
}

/// The server of a kind, as `cargo xtask brokers` names it.
fn server(kind: &str) -> String {
    let variable = servers::variable(kind);
    setting(&variable).unwrap_or_else(|| {
        panic!(
            "there is no server for tests; run `cargo xtask brokers up {kind}`, or set {variable} to the address of one"
        )
    })
}

fn with(server: &str, options: &str) -> String {
    let sign = if server.contains('?') { '&' } else { '?' };
    format!("{server}{sign}{options}")
}

/// A name that nothing on a server has yet.
fn place() -> String {
    format!("t{:012x}", fastrand::u64(..1 << 48))
}
