eventbus::topics! { extend shop_events; ORDER_PLACED = "order.placed" }

fn main() {}
