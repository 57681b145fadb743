eventbus::topics! { ORDER_PLACED = "order.placed" }

#[eventbus::subscribe("invoice.paid")]
async fn on_invoice(_payload: eventbus::Json<serde_json::Value>) {}

fn main() {}
