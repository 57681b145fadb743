//! `shop generate`: orders that look like those of a real shop. One seed gives the same orders each time.

use crate::catalogue::{PRODUCTS, Product};
use crate::mail::GREYLISTING;
use crate::order::{Customer, Item, NewOrder};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};

/// The Monday on which the orders begin, 2026-01-05, in seconds since 1970.
const FIRST_DAY: i64 = 1_767_571_200;
/// Over how many days they are spread.
const DAYS: usize = 90;
/// How busy the days of the week are, from Monday on; and the hours of a day.
const WEEK: [u32; 7] = [10, 9, 9, 10, 12, 15, 14];
const DAY: [u32; 24] =
    [3, 2, 1, 1, 1, 2, 4, 7, 10, 12, 13, 14, 16, 14, 12, 12, 13, 15, 18, 22, 24, 20, 13, 7];

/// Names as people write them, and as they stand in an e-mail address.
const FIRST_NAMES: &[(&str, &str)] = &[
    ("Ada", "ada"),
    ("Alan", "alan"),
    ("Amina", "amina"),
    ("Ben", "ben"),
    ("Carla", "carla"),
    ("Daniel", "daniel"),
    ("Elena", "elena"),
    ("Emma", "emma"),
    ("Felix", "felix"),
    ("Grace", "grace"),
    ("Hana", "hana"),
    ("Ivan", "ivan"),
    ("Jana", "jana"),
    ("José María", "josemaria"),
    ("Kofi", "kofi"),
    ("Laura", "laura"),
    ("Łukasz", "lukasz"),
    ("Mei", "mei"),
    ("Noah", "noah"),
    ("Olivia", "olivia"),
    ("Priya", "priya"),
    ("Robert \"Bob\"", "bob"),
    ("Søren", "soren"),
    ("Thị Mai", "thimai"),
    ("Zoë", "zoe"),
];
const LAST_NAMES: &[(&str, &str)] = &[
    ("Anderson", "anderson"),
    ("Becker", "becker"),
    ("Castro", "castro"),
    ("Dubois", "dubois"),
    ("Evans", "evans"),
    ("Fischer", "fischer"),
    ("García", "garcia"),
    ("Haddad", "haddad"),
    ("Ito", "ito"),
    ("Jansen", "jansen"),
    ("Kowalska", "kowalska"),
    ("Lovelace", "lovelace"),
    ("Müller", "mueller"),
    ("Nguyễn", "nguyen"),
    ("O'Brien", "obrien"),
    ("Okafor", "okafor"),
    ("Park", "park"),
    ("Rossi", "rossi"),
    ("Smith", "smith"),
    ("Turing", "turing"),
    ("van der Berg", "vanderberg"),
    ("Weiß", "weiss"),
    ("王", "wang"),
    ("Yılmaz", "yilmaz"),
];
const DOMAINS: &[&str] = &["@example.com", "@example.net", "@example.org", "@mail.example"];

/// So many orders, in the order of their times.
pub fn orders(count: usize, seed: u64) -> impl Iterator<Item = NewOrder> {
    let mut random = Rng::with_seed(seed);
    let mut times: Vec<_> = (0..count).map(|_| time(&mut random)).collect();
    times.sort_unstable();
    // Some customers come back.
    let customers: Vec<_> = (0..count.div_ceil(3)).map(|number| customer(&mut random, number)).collect();
    times.into_iter().enumerate().map(move |(number, placed_at)| NewOrder {
        id: Some(format!("g{seed}-{:06}", number + 1)),
        customer: customers[random.usize(..customers.len())].clone(),
        items: items(&mut random),
        placed_at: Some(placed_at),
    })
}

/// A time at which people order.
fn time(random: &mut Rng) -> Timestamp {
    let week = random.usize(..DAYS.div_ceil(7));
    let day = week * 7 + weighted(random, WEEK.iter().copied());
    if day >= DAYS {
        return time(random);
    }
    let hour = weighted(random, DAY.iter().copied());
    let second = (day * 24 + hour) as i64 * 3600 + random.i64(0..3600);
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(FIRST_DAY + second)
}

fn customer(random: &mut Rng, number: usize) -> Customer {
    let (first, first_plain) = FIRST_NAMES[random.usize(..FIRST_NAMES.len())];
    let (last, last_plain) = LAST_NAMES[random.usize(..LAST_NAMES.len())];
    let domain = if random.u8(..100) < 1 { GREYLISTING } else { DOMAINS[random.usize(..DOMAINS.len())] };
    Customer { name: format!("{first} {last}"), email: format!("{first_plain}.{last_plain}{number}{domain}") }
}

/// One product, or a few different ones. The rare ones are soon out of stock.
fn items(random: &mut Rng) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for _ in 0..=weighted(random, [50, 25, 14, 7, 4]) {
        let Product { sku, price_cents, .. } =
            PRODUCTS[weighted(random, PRODUCTS.iter().map(|p| p.popularity))];
        if items.iter().all(|item| item.sku != sku) {
            let quantity = [1, 1, 1, 1, 2, 2, 3, 5][random.usize(..8)];
            items.push(Item { sku: sku.to_owned(), quantity, price_cents });
        }
    }
    items
}

/// The place of a weight, as often as it is heavy.
fn weighted(random: &mut Rng, weights: impl IntoIterator<Item = u32, IntoIter: Clone>) -> usize {
    let weights = weights.into_iter();
    let sum: u32 = weights.clone().sum();
    let mut left = random.u32(..sum);
    weights
        .take_while(|weight| match left.checked_sub(*weight) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_seed_gives_the_same_orders_each_time() {
        let text = |seed| serde_json::to_string(&orders(200, seed).collect::<Vec<_>>()).unwrap();
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn the_shop_takes_every_generated_order_and_a_few_percent_want_what_is_not_there() {
        let orders: Vec<_> = orders(20_000, 1).map(|order| order.check().unwrap()).collect();
        assert!(orders.is_sorted_by_key(|order| order.placed_at));
        let rare = |item: &Item| PRODUCTS.iter().any(|p| p.sku == item.sku && p.stock < 100);
        let missing = orders.iter().filter(|order| order.items.iter().any(rare)).count();
        assert!((200..1_200).contains(&missing), "{missing} of 20,000");
    }

    #[test]
    fn evenings_are_busier_than_nights_and_weekends_than_tuesdays() {
        let mut hours = HashMap::<i8, u32>::new();
        let mut weekdays = HashMap::<_, u32>::new();
        for order in orders(20_000, 1) {
            let time = order.placed_at.unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            *hours.entry(time.hour()).or_default() += 1;
            *weekdays.entry(time.weekday()).or_default() += 1;
        }
        assert!(hours[&20] > 5 * hours[&3], "{hours:?}");
        assert!(weekdays[&jiff::civil::Weekday::Saturday] > weekdays[&jiff::civil::Weekday::Tuesday]);
    }
}
