eventbus::topics! { ORDERS = "order.*" }

fn main() {}
