eventbus::link!(many-crates);

fn main() {}
