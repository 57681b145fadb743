mod shop;

#[eventbus::subscribe]
async fn on_order(order: shop::OrderPlaced) {
    let shared = std::rc::Rc::new(order.id);
    tokio::task::yield_now().await;
    println!("{shared}");
}

fn main() {}
