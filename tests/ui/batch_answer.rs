mod shop;

#[eventbus::subscribe(batch = 10)]
async fn on_orders(orders: Vec<shop::OrderPlaced>) -> shop::OrderShipped {
    shop::OrderShipped { id: orders[0].id }
}

fn main() {}
