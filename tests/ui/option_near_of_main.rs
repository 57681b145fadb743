#[eventbus::main(crat = ::eventbus)]
async fn main() {}
