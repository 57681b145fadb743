struct Shop;

#[eventbus::subscriber(crates = ::eventbus)]
impl Shop {}

fn main() {}
