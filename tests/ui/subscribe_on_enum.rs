#[eventbus::subscribe("order.placed")]
enum OnOrder {}

fn main() {}
