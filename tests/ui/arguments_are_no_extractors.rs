mod shop;

struct Database;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: shop::OrderPlaced, _database: &Database, _count: u32) {}

fn main() {}
