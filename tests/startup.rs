//! The start-up checks: what a bus refuses, and how it says so.

mod support;

use eventbus::{Bus, Envelope, Error, Start, State, subscribe};
use std::sync::Arc;
use support::{OrderPlaced, Ping, bus, bus_with};

struct Mailer;

#[subscribe("order.placed", group = "shared")]
async fn first(_order: OrderPlaced) {}

#[subscribe("order.*", group = "shared")]
async fn second(_order: &Envelope) {}

#[subscribe(start = "earliest")]
async fn from_the_start(_ping: Ping) {}

#[subscribe]
async fn mail(_ping: Ping, _mailer: State<Mailer>) {}

#[subscribe]
async fn mail_too(_mailer: State<Mailer>, _ping: Ping) {}

#[subscribe]
async fn twice_shared(_ping: Ping, _mailer: State<Arc<Mailer>>) {}

#[subscribe]
async fn in_a_state(_ping: Ping, _mailer: State<State<Mailer>>) {}

struct Mialer;

mod elsewhere {
    pub(crate) struct Mailer;
}

async fn mistakes(builder: eventbus::bus::BusBuilder) -> Vec<String> {
    match builder.connect("memory:").await {
        Err(Error::Startup(error)) => error.mistakes().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn line_of(subscriber: &eventbus::subscription::Subscriber) -> String {
    subscriber.subscription.location()
}

#[tokio::test]
async fn two_subscriptions_of_one_group_with_overlapping_patterns_are_refused() {
    let mistakes = mistakes(Bus::builder().only(["shared"])).await;
    let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    for words in ["`shared`", &line_of(first::SUBSCRIBER), &line_of(second::SUBSCRIBER), "group = "] {
        assert!(mistake.contains(words), "{words}: {mistake}");
    }
}

#[tokio::test]
async fn a_second_subscription_at_run_time_is_told_how_to_name_its_group() {
    let bus = Bus::builder().without_subscriptions().connect("memory:").await.unwrap();
    let ping = |_: Arc<Ping>| async {};
    bus.on(ping).group("late").await.unwrap();
    let refused = bus.on(ping).group("late").await.unwrap_err().to_string();
    for words in ["the subscription cannot begin:", "`late`", "`.group("] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[tokio::test]
async fn a_missing_state_lists_every_subscriber_that_takes_it() {
    let only = || Bus::builder().only([mail::SUBSCRIBER, mail_too::SUBSCRIBER]);
    let mistakes = mistakes(only()).await;
    let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    for words in ["startup::Mailer", &line_of(mail::SUBSCRIBER), &line_of(mail_too::SUBSCRIBER), ".state("] {
        assert!(mistake.contains(words), "{words}: {mistake}");
    }
    only().state(Mailer).connect("memory:").await.expect("with the state it starts");
}

#[tokio::test]
async fn a_state_that_is_given_in_another_form_is_told_how_to_be_given() {
    let only = || Bus::builder().only([mail::SUBSCRIBER]);
    let given = [
        (
            only().state(Arc::new(Mailer)),
            "`Arc<Mailer>`, and `State<Mailer>` shares a plain `Mailer` already",
        ),
        (only().state(Box::new(Mailer)), "`Box<Mailer>`: write `.state(…)` with the plain `Mailer`"),
        (only().state(&Mailer), "`&Mailer`: write `.state(…)` with the plain `Mailer`"),
        (only().state(State::new(Mailer)), "`State<Mailer>`: write `.state(…)` with the plain `Mailer`"),
        (only().state(std::sync::Mutex::new(Mailer)), "or take `State<Mutex<Mailer>>`"),
        (only().state(elsewhere::Mailer), "`startup::elsewhere::Mailer`, another type of that name"),
        (only().state(Mialer), "did you mean `State<Mialer>`, which it has?"),
        (only().state(7_u32), "it has: `u32`"),
    ];
    for (builder, words) in given {
        let mistakes = mistakes(builder).await;
        let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
        assert!(
            mistake.contains("`startup::Mailer` is missing: ") && mistake.contains(words),
            "{words}: {mistake}"
        );
    }
    only().shared_state(Arc::new(Mailer)).connect("memory:").await.expect("it is what is said");
}

#[tokio::test]
async fn a_handler_that_wants_a_state_in_another_form_is_told_what_to_take() {
    let both = || Bus::builder().only([twice_shared::SUBSCRIBER, in_a_state::SUBSCRIBER]);
    let mistakes = mistakes(both().state(Mailer)).await.concat();
    for words in [
        "a plain `Mailer`: take `State<Mailer>`, which `State` shares already",
        "a `State<…>` is enough: take `State<Mailer>`",
    ] {
        assert!(mistakes.contains(words), "{words}: {mistakes}");
    }
}

#[tokio::test]
async fn a_capability_that_the_broker_lacks_is_named_together_with_the_subscription() {
    let mistakes = mistakes(Bus::builder().only([from_the_start::SUBSCRIBER])).await;
    let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    assert!(
        mistake.contains("in-process") && mistake.contains(&line_of(from_the_start::SUBSCRIBER)),
        "{mistake}"
    );
    assert_eq!(from_the_start::SUBSCRIBER.subscription.options.start, Some(Start::Earliest));
}

#[tokio::test]
async fn a_package_that_registered_nothing_is_named_with_the_remedy() {
    let only: [&str; 0] = [];
    let mistakes = mistakes(Bus::builder().only(only).expect(["eventbus", "shop-billing"])).await;
    let [mistake] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    for words in ["`shop-billing`", "link!(shop_billing)", "there are: `eventbus`"] {
        assert!(mistake.contains(words), "{words}: {mistake}");
    }
}

#[tokio::test]
async fn a_group_that_nobody_has_is_refused_with_the_nearest_one() {
    let refused = mistakes(Bus::builder().only(["sharde"])).await;
    assert!(
        refused[0].contains("there are: ") && refused[0].contains("did you mean \"shared\"?"),
        "{refused:?}"
    );
    let far = mistakes(Bus::builder().only(["h"])).await;
    assert!(far[0].contains("`eventbus.mail`") && far[0].contains("`shared`"), "{far:?}");
    let without_package = mistakes(Bus::builder().only(["mail"])).await;
    assert!(without_package[0].contains("did you mean \"eventbus.mail\"?"), "{without_package:?}");
}

#[tokio::test]
async fn only_the_chosen_groups_run() {
    let bus = Bus::builder().only([first::SUBSCRIBER]).connect("memory:").await;
    assert!(bus.is_err(), "`first` and `second` have one group, so they are chosen together");
    let bus = Bus::builder().state(Mailer).only([mail::SUBSCRIBER]).connect("memory:").await.unwrap();
    assert_eq!(
        bus.subscriptions().iter().map(|subscription| &*subscription.name).collect::<Vec<_>>(),
        ["mail"]
    );
}

#[tokio::test]
async fn all_mistakes_are_listed_at_once() {
    let error = Bus::connect("memory:").await.unwrap_err().to_string();
    for words in ["`shared`", "startup::Mailer", "earliest"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[tokio::test]
async fn a_subscription_that_is_made_at_run_time_obeys_the_same_rules() {
    let (bus, _broker) = bus().await;
    bus.on(|_: Arc<Ping>| async {}).group("twice").await.unwrap();
    let error = bus.on_topic("ping.*", |_| async {}).group("twice").await.unwrap_err().to_string();
    assert!(error.contains("`twice`") && error.matches("tests/startup.rs:").count() == 2, "{error}");
    let error = bus.on_topic("pong.sent", |_| async {}).group("two words").await.unwrap_err().to_string();
    assert!(error.contains("`two words`") && error.contains("[A-Za-z0-9_.-]"), "{error}");
    let error = bus.on_topic("ping..sent", |_| async {}).await.unwrap_err();
    assert!(matches!(error, Error::Topic(_)), "{error}");
    assert_eq!(bus.subscriptions().len(), 1);
}

#[tokio::test]
async fn an_unknown_address_is_refused_without_showing_its_password() {
    let error = Bus::connect("ampq://ada:secret@localhost/").await.unwrap_err().to_string();
    assert!(error.contains("`ampq`") && error.contains("memory:") && !error.contains("secret"), "{error}");
    let error = Bus::connect("shop.db").await.unwrap_err().to_string();
    assert!(error.contains("starts with a scheme"), "{error}");
}

#[tokio::test]
async fn a_topic_that_is_made_at_run_time_is_checked_when_it_is_published_to() {
    let (bus, _broker) = bus_with(Bus::builder()).await;
    let long = "x".repeat(250);
    for (topic, words) in [
        ("", "cannot be empty"),
        ("order placed", "` ` cannot be in a topic"),
        ("order.*", "`*` is a wildcard"),
        ("order.>", "`>` is a wildcard"),
        ("café.opened", "`é` cannot be in a topic"),
        (&long, "250 bytes; the limit is 249"),
    ] {
        let error = bus.publish_to(topic, &1).await.unwrap_err().to_string();
        assert!(error.contains(words), "{topic}: {error}");
    }
}

/// What `connect_from_env` says, for the test below, which sets its environment.
#[tokio::test]
#[ignore = "run by another test, with an environment of its own"]
async fn connects_from_the_environment() {
    match Bus::builder().only([] as [&str; 0]).connect_from_env().await {
        Ok(bus) => println!("connected: {bus:?}"),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn the_environment_names_the_broker_and_without_it_there_is_a_file_in_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let said = |url: Option<&str>| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "connects_from_the_environment"]);
        command.current_dir(&folder).env_remove("EVENTBUS_URL").envs(url.map(|url| ("EVENTBUS_URL", url)));
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let connected = said(Some("memory:"));
    assert!(connected.contains("connected: ") && connected.contains("in-process"), "{connected}");
    let unknown = said(Some("ampq://ada:secret@localhost/"));
    assert!(unknown.contains("refused: ") && unknown.contains("`ampq`"), "{unknown}");
    let default = said(None);
    assert!(default.contains("connected: ") && default.contains("SQLite"), "{default}");
    assert!(folder.path().join("eventbus.db").exists());
}

#[tokio::test]
async fn a_check_finds_what_a_start_would_refuse() {
    let builder = || Bus::builder().only([mail::SUBSCRIBER, from_the_start::SUBSCRIBER]);
    let found = builder().check("memory:").await.expect("what is found is no error").mistakes;
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found, mistakes(builder()).await);
}

#[tokio::test]
async fn a_bus_without_subscriptions_has_none_whatever_was_chosen_before() {
    let builder = Bus::builder().only([mail::SUBSCRIBER]).without_subscriptions();
    let bus = builder.connect("memory:").await.expect("no subscription lacks a state");
    assert!(bus.subscriptions().is_empty());
}
