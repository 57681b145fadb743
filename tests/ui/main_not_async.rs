#[eventbus::main]
fn main() {}
