use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced(std::marker::PhantomData<*const u8>);

fn main() {}
