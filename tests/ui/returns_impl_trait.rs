mod shop;

#[eventbus::subscribe]
async fn on_order(_order: shop::OrderPlaced) -> impl eventbus::outcome::IntoOutcome {}

fn main() {}
