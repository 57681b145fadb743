#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe]
async fn __p(_order: shop::OrderPlaced) {}

fn main() {}
