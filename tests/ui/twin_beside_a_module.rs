mod handlers {
    #[eventbus::subscribe("order.placed")]
    pub async fn audit(_event: &eventbus::Envelope) {}
}
pub use handlers::audit;

// A function and a module may have one name, and the twin of `audit` has it as well: `as = Audit` gives it another.
mod audit {}

fn main() {}
