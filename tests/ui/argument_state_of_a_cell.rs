use eventbus::{Envelope, State};
use std::cell::RefCell;

#[eventbus::subscribe("order.placed")]
async fn on_order(_envelope: &Envelope, _count: State<RefCell<u32>>) {}

fn main() {}
