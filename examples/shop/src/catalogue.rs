//! The catalogue: what the shop sells. A real shop would keep it in the database.

/// Something to buy.
#[derive(Debug)]
pub struct Product {
    /// Its name in orders.
    pub sku: &'static str,
    /// What it costs.
    pub price_cents: u64,
    /// How many the shop has when it opens.
    pub stock: u32,
    /// How often it is bought, in comparison with the others.
    pub popularity: u32,
}

const fn product(sku: &'static str, price_cents: u64, stock: u32, popularity: u32) -> Product {
    Product { sku, price_cents, stock, popularity }
}

/// Everything that the shop sells.
pub const PRODUCTS: &[Product] = &[
    product("pen", 250, 100_000, 90),
    product("pencil", 120, 100_000, 80),
    product("notebook-a5", 690, 100_000, 100),
    product("notebook-a4", 890, 100_000, 60),
    product("sketchbook", 1_490, 50_000, 30),
    product("calendar", 1_990, 50_000, 25),
    product("desk-lamp", 4_900, 50_000, 20),
    product("backpack", 7_900, 50_000, 18),
    product("mug", 1_290, 50_000, 45),
    product("tea-green", 790, 50_000, 40),
    product("coffee-beans", 1_190, 50_000, 50),
    product("fountain-pen", 5_900, 20_000, 12),
    product("ink-blue", 950, 20_000, 15),
    product("globe", 12_900, 5_000, 4),
    product("typewriter", 34_900, 12, 2),
    product("first-edition", 89_900, 3, 3),
    product("umbrella", 2_490, 0, 4),
];

/// The product with this name.
pub fn find(sku: &str) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| product.sku == sku)
}
