mod shop;

#[eventbus::subscribe(batch = 10)]
async fn on_orders(_order: shop::OrderPlaced) {}

fn main() {}
