mod shop;

struct Shop<T>(T);

#[eventbus::subscriber]
impl<T: Send + Sync + 'static> Shop<T> {
    #[eventbus::subscribe]
    async fn on_order(&self, _order: shop::OrderPlaced) {}
}

fn main() {}
