#[eventbus::subscribe("order.placed")]
struct OnOrder;

fn main() {}
