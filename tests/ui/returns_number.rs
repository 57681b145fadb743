mod shop;

#[eventbus::subscribe]
async fn on_order(_order: shop::OrderPlaced) -> u64 {
    order.id
}

fn main() {}
