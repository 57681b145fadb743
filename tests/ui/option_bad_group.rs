mod shop;

#[eventbus::subscribe("order.placed", group = "the mails")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
