eventbus::topics! { ORDER_PLACED = "order.placed" }

mod handlers {
    mod orders {
        #[eventbus::subscribe("order.plced")]
        async fn on_order(_envelope: &eventbus::Envelope) {}
    }
}

fn main() {}
