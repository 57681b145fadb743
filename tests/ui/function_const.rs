mod shop;

#[eventbus::subscribe]
const fn on_order(_order: &shop::OrderPlaced) {}

fn main() {}
