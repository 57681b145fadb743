use eventbus::{Envelope, State};
use std::rc::Rc;

#[eventbus::subscribe("order.placed")]
async fn on_order(_envelope: &Envelope, _count: State<Rc<u32>>) {}

fn main() {}
