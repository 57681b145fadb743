//! Without credentials a start fails, and says what to set.

use eventbus_aws::AwsBroker;
use std::net::TcpListener;
use std::process::Command;

/// What the program of these tests says, without anything that gives it credentials, where it looks at these.
fn said(settings: &[(&str, &str)]) -> String {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["a_program_that_connects", "--exact", "--ignored", "--nocapture"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            program.env_remove(name);
        }
    }
    let nowhere = std::env::temp_dir().join("there-is-no-such-file");
    program.env("AWS_CONFIG_FILE", &nowhere).env("AWS_SHARED_CREDENTIALS_FILE", &nowhere);
    program.envs(settings.iter().copied());
    let output = program.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
#[ignore = "the program that the other tests run by themselves, since a process has one environment"]
async fn a_program_that_connects() {
    let url = "sns://eu-central-1?endpoint=http://127.0.0.1:1&connect_timeout=8s";
    let error = AwsBroker::builder(url).unwrap().connect().await.unwrap_err();
    println!("{}", eventbus_core::chain(&error));
}

fn assert_it_says_what_to_set(said: &str) {
    assert!(said.contains("there are no credentials"), "{said}");
    assert!(said.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"), "{said}");
}

#[test]
fn where_nothing_gives_credentials_a_start_says_what_to_set() {
    let said = said(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    assert_it_says_what_to_set(&said);
    assert!(!said.contains("connect_timeout"), "nothing is waited for: {said}");
}

#[test]
fn where_the_service_that_gives_credentials_does_not_answer_a_start_says_what_to_set() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("http://{}", mute.local_addr().unwrap());
    assert_it_says_what_to_set(&said(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &at)]));
}
