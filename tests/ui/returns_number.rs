mod shop;

#[eventbus::subscribe]
async fn on_order(order: shop::OrderPlaced) -> u64 {
    order.id
}

fn main() {}
