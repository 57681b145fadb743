eventbus::topics! { ORDER_PLACED = "order.placed" }

#[eventbus::subscribe("user.*")]
async fn on_user(_payload: bytes::Bytes) {}

fn main() {}
