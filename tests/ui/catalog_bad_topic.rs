eventbus::topics! { ORDER_PLACED = "order placed", ORDER_SHIPPED = "order.shipped" }

fn main() {}
