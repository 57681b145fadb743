//! Policies of queues: who may send to one, and after how many deliveries SQS gives a message up. Pure functions.

use crate::names::last_part;
use eventbus_core::BrokerError;
use serde_json::{Value, json};

/// SQS gives up after so many deliveries by itself: it must not do so before we do, with the reason. How many it allows,
/// where it does.
pub(crate) fn check_redrive(
    name: &str,
    policy: Option<&String>,
    retries: u32,
) -> Result<Option<u32>, BrokerError> {
    let Some(policy) = policy.filter(|policy| !policy.is_empty()) else { return Ok(None) };
    let parsed: Value = serde_json::from_str(policy).unwrap_or_default();
    let most = match &parsed["maxReceiveCount"] {
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    };
    let Some(most) = most else {
        return Err(BrokerError::new(format!(
            "the redrive policy of the queue `{name}` has no `maxReceiveCount` that can be read: `{policy}`; correct it, or \
             remove it"
        )));
    };
    let target = parsed["deadLetterTargetArn"].as_str().unwrap_or_default();
    if last_part(target) == name {
        return Err(BrokerError::new(format!(
            "the redrive policy of the queue `{name}` moves messages to the queue itself; name another one \
             (`deadLetterTargetArn`), or remove the policy"
        )));
    }
    let attempts = u64::from(retries) + 1;
    if most <= attempts {
        return Err(BrokerError::new(format!(
            "SQS itself gives a message of the queue `{name}` up after {most} deliveries (`maxReceiveCount` of its redrive \
             policy), and the subscription makes {attempts} attempts: the dead letter would not say why; set \
             `maxReceiveCount` above {attempts}, or remove the policy"
        )));
    }
    // One delivery less, so that we give it up first.
    Ok(Some(u32::try_from(most - 1).unwrap_or(u32::MAX)))
}

/// Whether a policy lets these topics send.
pub(crate) fn allows(policy: Option<&String>, source: &str) -> bool {
    policy.is_some_and(|policy| {
        policy.contains(&Value::from(source).to_string()) && policy.contains("sns.amazonaws.com")
    })
}

/// A policy with a statement more, which lets these topics send.
pub(crate) fn with_permission(policy: Option<&String>, queue: &str, source: &str) -> String {
    let mut policy: Value = policy.and_then(|policy| serde_json::from_str(policy).ok()).unwrap_or_default();
    if !policy.is_object() {
        policy = json!({ "Version": "2012-10-17" });
    }
    let mut statements = match policy["Statement"].take() {
        Value::Array(statements) => statements,
        Value::Null => Vec::new(),
        one => vec![one],
    };
    statements.push(json!({
        "Effect": "Allow",
        "Principal": { "Service": "sns.amazonaws.com" },
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": { "ArnLike": { "aws:SourceArn": source } },
    }));
    policy["Statement"] = statements.into();
    policy.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "arn:aws:sns:eu-central-1:1:shop-*";

    #[test]
    fn a_policy_of_others_keeps_its_statements_and_lets_our_topics_send() {
        let others =
            r#"{"Version":"2012-10-17","Id":"x","Statement":{"Sid":"theirs","Effect":"Deny"}}"#.to_owned();
        assert!(!allows(None, SOURCE) && !allows(Some(&others), SOURCE));
        for policy in [None, Some(others), Some(String::new()), Some("garbage".to_owned())] {
            let written = with_permission(policy.as_ref(), "arn:aws:sqs:eu-central-1:1:q", SOURCE);
            assert!(allows(Some(&written), SOURCE), "{written}");
            assert_eq!(policy.is_some_and(|policy| policy.contains("theirs")), written.contains("theirs"));
        }
    }

    #[test]
    fn a_queue_that_gives_up_before_we_do_is_refused() {
        let policy =
            |most: &str| Some(format!(r#"{{"maxReceiveCount":{most},"deadLetterTargetArn":"arn"}}"#));
        for (policy, refused) in [
            (None, false),
            (Some(String::new()), false),
            (policy("5"), true),
            (policy("\"5\""), true),
            (policy("6"), false),
            (policy("\"1000\""), false),
            (policy("null"), true),
            (Some("garbage".to_owned()), true),
            (Some(r#"{"maxReceiveCount":9,"deadLetterTargetArn":"arn:aws:sqs:r:1:q"}"#.to_owned()), true),
        ] {
            let checked = check_redrive("q", policy.as_ref(), 4);
            assert_eq!(checked.is_err(), refused, "{policy:?}");
            if let Err(error) = checked {
                let error = error.to_string();
                assert!(error.contains("above 5") || error.contains("or remove"), "{error}");
            }
        }
        assert_eq!(
            check_redrive("q", policy("6").as_ref(), 4).unwrap(),
            Some(5),
            "we give up before SQS does"
        );
    }
}
