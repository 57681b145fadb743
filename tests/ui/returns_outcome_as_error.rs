mod shop;

use eventbus::Outcome;

#[eventbus::subscribe]
async fn on_order(order: shop::OrderPlaced) -> Result<shop::OrderShipped, Outcome> {
    Err(Outcome::Reject(format!("{} is unknown", order.id).into()))
}

fn main() {}
