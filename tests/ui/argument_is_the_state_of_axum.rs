mod shop;

mod axum {
    pub struct State<S>(pub S);
}

use axum::State;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: shop::OrderPlaced, _stock: State<u32>) {}

fn main() {}
