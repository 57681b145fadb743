#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe(as = OnOrder)]
#[eventbus::subscribe("order.shipped", group = "other", as = Other)]
async fn on_order(_event: &eventbus::Envelope) {}

fn main() {}
