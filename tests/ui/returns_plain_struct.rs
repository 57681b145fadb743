mod shop;

struct Reserved;

#[eventbus::subscribe]
async fn on_order(_order: shop::OrderPlaced) -> Result<Reserved, String> {
    Ok(Reserved)
}

fn main() {}
