//! Orders: as customers send them, and as the shop takes them.

use crate::catalogue;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An order that was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Which one.
    pub id: String,
    /// Who placed it.
    pub customer: Customer,
    /// What was ordered; at least one thing.
    pub items: Vec<Item>,
    /// When it was placed.
    pub placed_at: Timestamp,
}

/// Who places orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Customer {
    /// The name, as the customer writes it.
    pub name: String,
    /// Where confirmations go.
    pub email: String,
}

/// So many of one product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
    /// What one costs: the price that the customer was shown.
    pub price_cents: u64,
}

impl Order {
    /// What all of it costs.
    pub fn total_cents(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.quantity) * item.price_cents).sum()
    }
}

/// An order that somebody wants to place: the body of `POST /orders`, and a line of a file that is imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// The id, chosen by whoever sends the order, so that sending it twice is placing it once. It plays the part of
    /// an `Idempotency-Key`. Without it the order gets a fresh one, and cannot be sent again safely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who places it.
    pub customer: Customer,
    /// What is ordered.
    pub items: Vec<Item>,
    /// When it was placed, for a till that was offline; otherwise now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_at: Option<Timestamp>,
}

impl NewOrder {
    /// The order, if the shop can take it. Whether everything is in stock is for the inventory to say, later.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn check(self) -> Result<Order, InvalidOrder> {
        let mut problems = Vec::new();
        if let Some(id) = &self.id
            && !is_id(id)
        {
            problems.push(format!("the id {id:?} is not 1 to 64 letters, digits, `-` and `_`"));
        }
        if self.customer.name.trim().is_empty() {
            problems.push("the customer has no name".to_owned());
        }
        if !is_email(&self.customer.email) {
            problems.push(format!("{:?} is not an e-mail address", self.customer.email));
        }
        if self.items.is_empty() {
            problems.push("nothing is ordered".to_owned());
        }
        problems.extend(self.items.iter().filter_map(problem_of));
        if !problems.is_empty() {
            return Err(InvalidOrder(problems));
        }
        Ok(Order {
            id: self.id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            customer: self.customer,
            items: self.items,
            placed_at: self.placed_at.unwrap_or_else(Timestamp::now),
        })
    }
}

/// An order that the shop cannot take, with all that is wrong with it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidOrder(pub Vec<String>);

fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether mail may arrive there. Only sending one proves it.
fn is_email(email: &str) -> bool {
    let plain = !email.contains(|c: char| c.is_whitespace() || c.is_control());
    plain && email.rsplit_once('@').is_some_and(|(name, domain)| !name.is_empty() && domain.contains('.'))
}

fn problem_of(item: &Item) -> Option<String> {
    let sku = &item.sku;
    let Some(product) = catalogue::find(sku) else {
        return Some(format!("there is no product {sku:?}"));
    };
    if !(1..=100).contains(&item.quantity) {
        return Some(format!("{sku}: the quantity is from 1 to 100, not {}", item.quantity));
    }
    (item.price_cents != product.price_cents)
        .then(|| format!("{sku} costs {} cents, not {}", product.price_cents, item.price_cents))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada(items: Vec<Item>) -> NewOrder {
        let customer = Customer { name: "Ada".into(), email: "ada@example.com".into() };
        NewOrder { id: Some("web-1".into()), customer, items, placed_at: None }
    }

    #[test]
    fn everything_that_is_wrong_with_an_order_is_said_at_once() {
        let item = |sku: &str, quantity, price_cents| Item { sku: sku.into(), quantity, price_cents };
        let mut order = ada(vec![item("unicorn", 1, 1), item("pen", 0, 250), item("pen", 1, 1)]);
        order.id = Some("a/b".into());
        order.customer = Customer { name: " ".into(), email: "nobody".into() };
        let InvalidOrder(problems) = order.check().unwrap_err();
        assert_eq!(problems.len(), 6, "{problems:?}");
        assert_eq!(ada(vec![]).check().unwrap_err().to_string(), "nothing is ordered");
    }

    #[test]
    fn an_order_costs_what_its_items_cost() {
        let pens = Item { sku: "pen".into(), quantity: 3, price_cents: 250 };
        assert_eq!(ada(vec![pens]).check().unwrap().total_cents(), 750);
    }
}
