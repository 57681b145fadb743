use eventbus::Event;

#[derive(Event, Clone)]
#[event(topic = "order.placed")]
struct OrderPlaced;

fn main() {}
