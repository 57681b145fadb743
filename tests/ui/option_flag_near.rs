#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe(bloking)]
fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
