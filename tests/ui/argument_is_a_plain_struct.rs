struct Order {
    id: u64,
}

#[eventbus::subscribe("order.placed")]
async fn on_order(order: Order) {
    println!("{}", order.id);
}

fn main() {}
