mod shop;

#[eventbus::subscribe]
async fn on_order<'a>(_order: &'a shop::OrderPlaced) {}

fn main() {}
