mod shop;

#[eventbus::subscriber]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
