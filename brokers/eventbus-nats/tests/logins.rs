//! Who is let in by which way, and servers that are older than what is asked of them. Names are promises.

mod support;

use eventbus::broker::Broker;
use eventbus_nats::NatsBroker;
use nkeys::KeyPair;
use serde_json::{Value, json};
use support::own::Server;
use support::{PATIENCE, Place, ack, early, event, number, receive_all, request, secure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Publishes and handles an event with this login, of which nothing is shown.
async fn works(place: &Place, secrets: &[&str]) {
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 7)).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 7);
    ack(received).await;
    let shown = format!("{broker:?}");
    assert!(secrets.iter().all(|secret| !shown.contains(secret)), "{shown}");
    broker.close().await.unwrap();
}

#[tokio::test]
async fn who_has_the_token_is_let_in_over_tls() {
    let server = Server::with_tls("authorization { token: \"s3cr3t/token\" }").await;
    let (address, ca) = (&server.address, secure("EVENTBUS_TEST_CA"));
    for url in [
        format!("tls://s3cr3t%2Ftoken@{address}?ca={ca}"),
        format!("tls://{address}?ca={ca}&token=s3cr3t/token"),
    ] {
        works(&Place::at(url), &["s3cr3t"]).await;
    }
    let wrong = NatsBroker::builder(&format!("tls://other@{address}?ca={ca}")).unwrap().connect().await;
    assert!(wrong.unwrap_err().to_string().contains("does not let in this token"));
}

/// A token that says something of `subject`, signed by `issuer`.
fn signed(issuer: &KeyPair, subject: &str, name: &str, mut says: Value) -> String {
    says["version"] = json!(2);
    let claims = json!({
        "jti": format!("{name}-1"), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject,
        "nats": says,
    });
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let text = format!("{}.{}", base64(head.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", base64(&signature))
}

/// As tokens have it: for URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(LETTERS[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

#[tokio::test]
async fn who_has_credentials_of_the_operator_is_let_in_over_tls_and_another_user_is_not() {
    let (operator, account, system, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let operators = signed(
        &operator,
        &operator.public_key(),
        "O",
        json!({ "type": "operator", "system_account": system.public_key() }),
    );
    let of_account = |account: &KeyPair, name: &str, limits: Value| {
        signed(&operator, &account.public_key(), name, json!({ "type": "account", "limits": limits }))
    };
    let without = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let server = Server::with_tls(&format!(
        "operator: {operators}
system_account: {1}
resolver: MEMORY
resolver_preload {{ {0}: {2}, {1}: {3} }}",
        account.public_key(),
        system.public_key(),
        of_account(&account, "A", limits),
        of_account(&system, "SYS", without),
    ))
    .await;
    let ca = secure("EVENTBUS_TEST_CA");
    let credentials = |name: &str, issuer: &KeyPair, user: &KeyPair| {
        let says = json!({ "type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {} });
        let token = signed(issuer, &user.public_key(), name, says);
        let file = server.path().join(format!("{name}.creds"));
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&file, text).unwrap();
        format!("tls://{}?ca={ca}&credentials={}", server.address, file.display())
    };
    let seed = user.seed().unwrap();
    works(&Place::at(credentials("let-in", &account, &user)), &[&seed]).await;
    // Signed by nobody whom the operator knows.
    let url = credentials("stranger", &KeyPair::new_account(), &user);
    let error = NatsBroker::builder(&url).unwrap().connect().await.unwrap_err().to_string();
    assert!(error.contains("does not let in the credentials") && error.contains("stranger.creds"), "{error}");
}

/// A way to the server for tests, which says there that it is of another version.
async fn of_version(version: &'static str) -> String {
    let server = support::server().trim_start_matches("nats://").split('?').next().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(async move {
                let mut first = vec![0; 16 << 10];
                let mut length = 0;
                while !first[..length].ends_with(b"\r\n") {
                    length += server.read(&mut first[length..]).await.unwrap();
                }
                let line = String::from_utf8(first[..length].to_vec()).unwrap();
                let (before, rest) = line.split_once("\"version\":\"").unwrap();
                let (_, after) = rest.split_once('"').unwrap();
                let line = format!("{before}\"version\":\"{version}\"{after}");
                client.write_all(line.as_bytes()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    format!("nats://{address}")
}

#[tokio::test]
async fn an_older_server_is_refused_by_its_version_where_order_needs_a_newer_one_and_serves_the_rest() {
    let place = Place::new();
    for version in ["2.10.29", "2.9.0"] {
        let old = place.by_way_of(of_version(version).await);
        let broker = old.broker().await;
        let refused = broker.subscribe(early("ordered", ">")).await.map(drop).unwrap_err().to_string();
        for said in ["`ordered`", &format!("NATS {version}"), "2.11 or newer", "`competing`"] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
        let mut competing = request(&format!("g{}", version.len()), ">");
        competing.competing = true;
        let mut deliveries = broker.subscribe(competing).await.unwrap();
        broker.publish(event("a.b", "k", 7)).await.unwrap();
        let received =
            tokio::time::timeout(PATIENCE, receive_all(&mut deliveries, 1)).await.unwrap().remove(0);
        ack(received).await;
        broker.close().await.unwrap();
    }
}
