mod events {
    eventbus::topics! { ORDER_PLACED = "order.placed" }
}

eventbus::topics! { extends events; LOCAL_TICK = "local.tick" }

#[eventbus::subscribe("order.plaecd")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
