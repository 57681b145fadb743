//! Everything a handler can take, and an argument of your own.
//!
//! ```text
//! cargo run --example extractors
//! ```

use bytes::Bytes;
use eventbus::{
    Attempt, Bus, Delivery, Envelope, Event, FromDelivery, Headers, Json, Outcome, Publisher, State,
    subscribe, subscriber,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "user.created", key = id, subject = name)]
struct UserCreated {
    id: u64,
    name: String,
}

/// A copy of the event, to be changed or kept.
#[subscribe]
async fn by_value(mut user: UserCreated) {
    user.name.make_ascii_uppercase();
    println!("by value:      {}", user.name);
}

/// The event itself, shared with the other subscribers.
#[subscribe]
async fn by_reference(user: &UserCreated, Attempt(attempt): Attempt) {
    println!("by reference:  {} (attempt {attempt})", user.name);
}

/// The event itself, to be kept beyond the call.
#[subscribe]
async fn by_arc(user: Arc<UserCreated>) {
    tokio::spawn(async move { println!("by arc:        {}", user.name) });
}

/// Any event on matching topics, with its context attributes.
#[subscribe("user.>")]
async fn by_envelope(envelope: &Envelope) {
    println!("by envelope:   {} about {:?}, id {}", envelope.topic(), envelope.subject(), envelope.id());
}

/// A payload without an event type, as JSON.
#[subscribe("user.*")]
async fn by_json(Json(user): Json<serde_json::Value>) {
    println!("by json:       {}", user["name"]);
}

/// The bytes as they are.
#[subscribe("user.created")]
async fn by_bytes(payload: Bytes, headers: &Headers) {
    println!("by bytes:      {} bytes, headers {:?}", payload.len(), headers.iter().collect::<Vec<_>>());
}

/// What the program shares between handlers, and a publisher for what this event causes.
#[subscribe]
async fn greet(user: &UserCreated, greeting: State<Greeting>, publisher: Publisher) -> eventbus::Result<()> {
    publisher.publish_to("greeting.sent", &format!("{}, {}!", greeting.word, user.name)).await?;
    Ok(())
}

struct Greeting {
    word: &'static str,
}

/// An argument of our own: the tenant that a header names.
struct Tenant(String);

impl FromDelivery<'_> for Tenant {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        match delivery.envelope().headers().get("tenant") {
            Some(tenant) => Ok(Self(tenant.to_owned())),
            None => Err(Outcome::Reject("the header `tenant` is missing".into())),
        }
    }
}

#[subscribe]
async fn of_a_tenant(user: &UserCreated, Tenant(tenant): Tenant) {
    println!("own argument:  {} belongs to {tenant}", user.name);
}

/// Methods take `&self` from the state.
struct Directory {
    city: &'static str,
}

#[subscriber]
impl Directory {
    #[subscribe]
    async fn enter(&self, user: &UserCreated) {
        println!("method:        {} entered in {}", user.name, self.city);
    }
}

/// A plain function that blocks, on a thread where it may.
#[subscribe("greeting.sent", blocking)]
fn print_greeting(Json(greeting): Json<String>, envelope: &Envelope) {
    let cause = envelope.causation_id().map(ToString::to_string);
    println!("blocking:      {greeting} (caused by {})", cause.as_deref().unwrap_or("nobody"));
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let bus = Bus::builder()
        .state(Greeting { word: "Welcome" })
        .state(Directory { city: "London" })
        .connect("memory:")
        .await?;
    bus.start()?;
    bus.publish(&UserCreated { id: 1, name: "Ada".into() }).header("tenant", "acme").await?;
    bus.shutdown().await
}
