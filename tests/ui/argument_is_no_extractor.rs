mod shop;

struct Database;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: shop::OrderPlaced, _database: Database) {}

fn main() {}
