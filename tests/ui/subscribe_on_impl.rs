struct OnOrder;

#[eventbus::subscribe("order.placed")]
impl OnOrder {}

fn main() {}
