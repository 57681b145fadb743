//! A shop that serves on a free port, with its files in a folder of the test.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod address;
pub(crate) mod machine;

use eventbus::Bus;
use eventbus::bus::BusBuilder;
use serde_json::{Value, json};
use shop::database::Database;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing here takes so long; it ends a test that would wait for ever.
const LONG: Duration = Duration::from_secs(120);

pub(crate) struct Shop {
    pub(crate) bus: Bus,
    pub(crate) database: Database,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Shop {
    /// On the embedded log.
    pub(crate) async fn open(folder: &Path) -> Self {
        Self::open_on(folder, &address::log(folder), |bus| bus).await
    }

    /// On any broker, with more that the test wants of its bus.
    pub(crate) async fn open_on(
        folder: &Path,
        url: &str,
        with: impl FnOnce(BusBuilder) -> BusBuilder,
    ) -> Self {
        let database = Database::open(folder.join("shop-data.db")).unwrap();
        let bus = with(shop::bus(&database, url)).connect(url).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = shop::serve::serve(listener, database.clone(), bus.clone(), async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(async { serving.await.unwrap() });
        Self { bus, database, address, stop, server }
    }

    /// Resolves once every event is settled by every consumer.
    pub(crate) async fn settled(&self) {
        timeout(LONG, self.bus.settled()).await.expect("everything is settled").unwrap();
    }

    /// Ends as at Ctrl-C.
    pub(crate) async fn close(self) {
        self.stop.send(()).unwrap();
        timeout(LONG, self.server).await.expect("the shop ends").unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "").await
    }

    pub(crate) async fn post(&self, order: &Value) -> (u16, Value) {
        self.request("POST", "/orders", &order.to_string()).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LONG, connection.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).expect("each answer is JSON"))
    }

    /// A number out of the shop's database.
    pub(crate) async fn count(&self, sql: &'static str) -> u64 {
        self.database.read(move |connection| connection.query_row(sql, [], |row| row.get(0))).await.unwrap()
    }
}

/// An order of pens, on a day of its own.
pub(crate) fn pens(id: &str, quantity: u32) -> Value {
    json!({
        "id": id,
        "customer": { "name": "Ada Lovelace", "email": "ada@example.com" },
        "items": [{ "sku": "pen", "quantity": quantity, "price_cents": 250 }],
        "placed_at": "2026-03-01T12:00:00Z",
    })
}
