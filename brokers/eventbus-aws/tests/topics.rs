//! Topics and queues that come, go and refuse, and who joins them. Names are promises.

mod support;

use eventbus::broker::Broker;
use eventbus_aws::AwsBroker;
use eventbus_aws::aws_sdk_sqs::types::QueueAttributeName;
use support::gateway::{Gateway, Verdict};
use support::{ack, connect, event, number, prefix, receive, request, server, until, url, url_at};

/// Removes a topic and makes it anew, as another program may: nothing is subscribed to it.
async fn make_anew(broker: &AwsBroker, name: &str) {
    let topic = broker.sns().create_topic().name(name).send().await.unwrap().topic_arn.unwrap();
    broker.sns().delete_topic().topic_arn(topic).send().await.unwrap();
    broker.sns().create_topic().name(name).send().await.unwrap();
}

/// How many messages wait in the queue whose name begins so.
async fn waiting(broker: &AwsBroker, begin: &str) -> u64 {
    let queues = broker.sqs().list_queues().queue_name_prefix(begin).send().await.unwrap();
    let name = QueueAttributeName::ApproximateNumberOfMessages;
    let look = broker.sqs().get_queue_attributes().queue_url(&queues.queue_urls()[0]);
    let look = look.attribute_names(name.clone()).send().await.unwrap();
    look.attributes.unwrap()[&name].parse().unwrap()
}

#[tokio::test]
async fn a_publisher_that_starts_after_its_topic_was_made_anew_joins_the_queues_again() {
    for pattern in ["a.b", "a.>"] {
        let prefix = prefix();
        let reading = connect(&url(&prefix, false)).await;
        let mut deliveries = reading.subscribe(request("mail", pattern)).await.unwrap();
        reading.publish(event("a.b", "k", 1)).await.unwrap();
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
        make_anew(&reading, &format!("{prefix}-a-b")).await;
        let publishing = connect(&url(&prefix, false)).await;
        publishing.publish(event("a.b", "k", 2)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2, "{pattern}");
    }
}

#[tokio::test]
async fn a_reader_finds_out_that_its_topic_was_made_anew_and_joins_all_queues_again() {
    for pattern in ["a.b", "a.>"] {
        let prefix = prefix();
        let short = url(&prefix, false).replace("visibility_timeout=10s", "visibility_timeout=2s");
        let broker = connect(&short).await;
        let mut deliveries = broker.subscribe(request("mail", pattern)).await.unwrap();
        drop(broker.subscribe(request("nobody", pattern)).await.unwrap());
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
        make_anew(&broker, &format!("{prefix}-a-b")).await;
        let role = if pattern == "a.b" { "group" } else { "any" };
        let queues = [format!("{prefix}-{role}-mail-"), format!("{prefix}-{role}-nobody-")];
        let topic = broker.sns().create_topic().name(format!("{prefix}-a-b")).send().await.unwrap();
        let topic = topic.topic_arn.unwrap();
        let endpoints = async || {
            let page = broker.sns().list_subscriptions_by_topic().topic_arn(&topic).send().await.unwrap();
            let all = page.subscriptions().iter().filter_map(|one| one.endpoint().map(str::to_owned));
            all.collect::<Vec<_>>()
        };
        until("both are joined again", async || {
            let joined = endpoints().await;
            queues.iter().all(|queue| joined.iter().any(|endpoint| endpoint.contains(queue.as_str())))
        })
        .await;
        broker.publish(event("a.b", "k", 2)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2, "{pattern}");
        until("the group without a process has it too", async || waiting(&broker, &queues[1]).await >= 2)
            .await;
    }
}

#[tokio::test]
async fn a_program_that_meets_many_topics_asks_each_queue_once_and_those_that_are_joined_nothing() {
    const GROUPS: u64 = 6;
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let reading = connect(&url(&prefix, false)).await;
    for number in 0..GROUPS {
        let pattern = if number % 2 == 0 { "a.>" } else { "a.t1" };
        drop(reading.subscribe(request(&format!("group-{number}"), pattern)).await.unwrap());
    }
    let publishing = connect(&url_at(&gateway.url(), &prefix, false)).await;
    let events = (0..20).map(|number| event(&format!("a.t{number}"), "k", number)).collect();
    assert!(publishing.publish_all(events).await.iter().all(Result::is_ok));
    assert_eq!(gateway.count("ListQueueTags"), GROUPS, "each is looked at once");
    // One list has two kinds of queues; that of the connection is another one.
    assert!(gateway.count("ListQueues") <= 1 + 3 * 2, "{}", gateway.count("ListQueues"));
    // Another program finds all of them joined.
    let gateway = Gateway::to(&server()).await;
    let publishing = connect(&url_at(&gateway.url(), &prefix, false)).await;
    publishing.publish(event("a.t1", "k", 1)).await.unwrap();
    assert_eq!((gateway.count("ListQueueTags"), gateway.count("Subscribe")), (0, 0));
    assert_eq!(waiting(&reading, &format!("{prefix}-any-group-0-")).await, 21);
    assert_eq!(waiting(&reading, &format!("{prefix}-group-group-1-")).await, 2);
}

#[tokio::test]
async fn a_queue_that_refuses_keeps_no_publisher_from_its_topic_and_no_other_queue_from_its_events() {
    for (call, code) in [
        ("ListQueueTags", "AccessDenied"),
        ("GetQueueAttributes", "AccessDenied"),
        ("Subscribe", "AuthorizationError"),
    ] {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let reading = connect(&url(&prefix, false)).await;
        let mut deliveries = reading.subscribe(request("mail", "a.>")).await.unwrap();
        drop(reading.subscribe(request("foreign", "a.>")).await.unwrap());
        gateway.judge(move |asked| {
            let refuses = asked.name == call && asked.body.contains("any-foreign-");
            if refuses { Verdict::Refuse(403, code) } else { Verdict::Pass }
        });
        let publishing = connect(&url_at(&gateway.url(), &prefix, false)).await;
        publishing.publish(event("a.b", "k", 1)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 1, "{call}");
        assert!(gateway.count(call) >= 2, "both queues were asked for");
    }
}

#[tokio::test]
async fn a_subscription_that_others_have_given_a_filter_and_a_topic_with_other_settings_are_used_as_they_are()
{
    for fifo in [false, true] {
        let prefix = prefix();
        let broker = connect(&url(&prefix, fifo)).await;
        let suffix = if fifo { ".fifo" } else { "" };
        let mut make = broker.sns().create_topic().name(format!("{prefix}-a-b{suffix}"));
        if fifo {
            make = make.attributes("FifoTopic", "true").attributes("ContentBasedDeduplication", "true");
        }
        let topic = make.attributes("KmsMasterKeyId", "alias/shop").send().await.unwrap().topic_arn.unwrap();
        drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
        let joined = broker.sns().list_subscriptions_by_topic().topic_arn(&topic).send().await.unwrap();
        let joined = joined.subscriptions()[0].subscription_arn().unwrap().to_owned();
        let set = broker.sns().set_subscription_attributes().subscription_arn(joined);
        let filter = r#"{"ce-type":["a.b"]}"#;
        set.attribute_name("FilterPolicy").attribute_value(filter).send().await.unwrap();
        // Amazon refuses to subscribe with other settings, and to make a topic with other ones, which the emulator does not.
        let gateway = Gateway::to(&server()).await;
        gateway
            .answer(|name| matches!(name, "Subscribe" | "CreateTopic").then_some((400, "InvalidParameter")));
        for topology in ["create", "check"] {
            let at = format!("{}&topology={topology}", url_at(&gateway.url(), &prefix, fifo));
            let other = connect(&at).await;
            let mut deliveries = other.subscribe(request("mail", "a.b")).await.unwrap();
            other.publish(event("a.b", "k", 1)).await.unwrap();
            let received = receive(&mut deliveries, 1).await.remove(0);
            assert_eq!(number(&received), 1);
            ack(received).await;
        }
    }
}

#[tokio::test]
async fn a_new_queue_lets_its_topics_send_from_its_beginning() {
    for (fifo, pattern) in [(false, "a.b"), (true, "a.b"), (false, "a.>")] {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        // What is set later holds only some time later.
        gateway.answer(|name| (name == "SetQueueAttributes").then_some((403, "AccessDenied")));
        let broker = connect(&url_at(&gateway.url(), &prefix, fifo)).await;
        // Several processes begin at once.
        let others = connect(&url(&prefix, fifo)).await;
        let (first, second) = tokio::join!(
            broker.subscribe(request("mail", pattern)),
            others.subscribe(request("mail", pattern))
        );
        let (mut deliveries, _) = (first.unwrap(), second.map(drop).unwrap());
        assert_eq!(gateway.count("SetQueueAttributes"), 0);
        let queues = broker.sqs().list_queues().queue_name_prefix(&prefix).send().await.unwrap();
        let queue = queues.queue_urls().iter().find(|url| url.contains("-mail-") && !url.contains("-dead-"));
        let look = broker.sqs().get_queue_attributes().queue_url(queue.unwrap());
        let look = look.attribute_names(QueueAttributeName::Policy).send().await.unwrap();
        let policy = look.attributes.unwrap().remove(&QueueAttributeName::Policy).unwrap();
        assert!(policy.contains(&format!("arn:aws:sns:us-east-1:000000000000:{prefix}-*")), "{policy}");
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 1);
    }
}

#[tokio::test]
async fn a_topic_that_refuses_keeps_a_reader_from_no_other_topic() {
    // Whichever is looked at first.
    for (refused, other) in [("a.b", "a.z"), ("a.z", "a.b")] {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let named = |topic: &str| format!("{prefix}-{}", topic.replace('.', "-"));
        let refuses = named(refused);
        gateway.judge(move |asked| {
            let refuses = asked.name == "Subscribe" && asked.body.contains(&refuses);
            if refuses { Verdict::Refuse(403, "AuthorizationError") } else { Verdict::Pass }
        });
        let short =
            url_at(&gateway.url(), &prefix, false).replace("visibility_timeout=10s", "visibility_timeout=2s");
        let broker = connect(&short).await;
        let mut deliveries = broker.subscribe(request("mail", "a.>")).await.unwrap();
        for topic in [refused, other] {
            broker.sns().create_topic().name(named(topic)).send().await.unwrap();
        }
        let found = broker.sns().create_topic().name(named(other)).send().await.unwrap();
        let found = found.topic_arn.unwrap();
        until("the other one is joined", async || {
            let joined = broker.sns().list_subscriptions_by_topic().topic_arn(&found).send().await.unwrap();
            !joined.subscriptions().is_empty()
        })
        .await;
        broker.publish(event(other, "k", 1)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 1);
    }
}
