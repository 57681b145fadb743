eventbus::topics! { ORDER_PLACED = "order.placed", ORDER_SHIPPED = "order.shipped" }

#[eventbus::subscribe("order.plcaed")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
