mod shop;

struct Full;

#[eventbus::subscribe]
async fn on_order(_order: shop::OrderPlaced) -> Result<(), Full> {
    Err(Full)
}

fn main() {}
