#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe]
async unsafe fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
