mod shop;

const MAILS: &str = "the mails";

#[eventbus::subscribe("order.placed", group = MAILS)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
