//! The clients of SNS and SQS, and what becomes of their calls.

use crate::clock;
use crate::config::Settings;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::config::Credentials;
use aws_sdk_sqs::config::StalledStreamProtectionConfig;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::connection::{ConnectionState, Failure, patiently};
use jiff::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a call may take that waits for nothing.
pub(crate) const CALL: Duration = Duration::from_secs(10);
/// How long one of many calls, as for a list, is made again while the server wants fewer.
const STEADY: Duration = Duration::from_secs(10);
/// How long a start waits for a server that is there and wants to be left time: it makes a queue again only a minute after it
/// was removed.
const LEFT_TIME: Duration = Duration::from_secs(90);
/// So long what was made here may not be known everywhere, and is not taken for what somebody has removed.
const YOUNG: Duration = Duration::from_secs(10);

/// What everything that speaks to Amazon shares.
pub(crate) struct Link {
    pub(crate) settings: Settings,
    pub(crate) sns: aws_sdk_sns::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) config: SdkConfig,
    pub(crate) state: ConnectionState,
    pub(crate) slowed: Slowed,
    /// When queues were made here, by their addresses.
    young: Lock<HashMap<String, Instant>>,
}

/// Whether the server wants fewer calls. It is no lost connection: who answers so is there.
pub(crate) struct Slowed(Lock<Option<Slow>>);

struct Slow {
    since: Timestamp,
    last: Instant,
    said: String,
}

impl Slowed {
    fn new() -> Self {
        Self(Lock::new(Rank::LEAF, None))
    }

    /// Since when, and what it says.
    pub(crate) fn now(&self) -> Option<(Timestamp, String)> {
        self.0.lock().as_ref().map(|slow| (slow.since, slow.said.clone()))
    }

    /// A call was answered so. Whether it is the first.
    fn begins(&self, said: &str) -> bool {
        let mut slow = self.0.lock();
        let since = slow.as_ref().map(|slow| slow.since);
        *slow = Some(Slow {
            since: since.unwrap_or_else(Timestamp::now),
            last: Instant::now(),
            said: said.to_owned(),
        });
        since.is_none()
    }

    /// A call succeeds. Whether it is the first in a while: of many at once some succeed, and others do not.
    fn ends(&self) -> bool {
        let mut slow = self.0.lock();
        slow.take_if(|slow| slow.last.elapsed() >= CALM).is_some()
    }
}

/// So long no call was slowed down, where that is over.
const CALM: Duration = Duration::from_secs(10);

/// How long to wait after so many calls in a row that the server did not want: from 250 ms, doubling up to 16 s, and of that
/// at random from a half to the whole.
pub(crate) fn slow_down(tries: usize) -> Duration {
    let longest = Duration::from_millis(250 << tries.saturating_sub(1).min(6));
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Why a call has failed.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// It may succeed another time: nobody answers, or the server is broken for now. Whether it was done is not known.
    Passing(String),
    /// It was not done, since the server wants fewer calls, or wants to be left time: it may be another time.
    Slow(String),
    /// It was refused.
    Refused {
        /// Amazon's name of the reason.
        code: String,
        message: String,
    },
}

impl Trouble {
    /// Whether it was refused for one of these reasons, whatever protocol has spelt it.
    pub(crate) fn is(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Refused { code, .. } if codes.iter().any(|known| code.contains(known)))
    }

    /// Whether there is no such queue, or topic. A key that encrypts it may be missing as well (`KMSNotFound`), which is
    /// something else.
    pub(crate) fn is_gone(&self) -> bool {
        self.is(GONE) && !self.is(&["KMS"])
    }

    /// What this means for what was being done, which is tried again unless it stays so.
    pub(crate) fn failure(self, what: impl fmt::Display) -> Failure {
        match self {
            Self::Passing(error) => Failure::Passing(format!("cannot {what}: {error}")),
            Self::Slow(error) => Failure::Advised(format!("cannot {what}: {error}")),
            Self::Refused { .. } => Failure::Lasting(self.explain(what)),
        }
    }

    /// An error about what was being done.
    pub(crate) fn explain(self, what: impl fmt::Display) -> BrokerError {
        BrokerError::new(format!("cannot {what}")).with_cause(self.to_string())
    }
}

/// The reasons for which the keys are to be looked at.
const KEYS: &[&str] = &[
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "InvalidSignature",
    "UnrecognizedClient",
    "ExpiredToken",
    "MissingAuthenticationToken",
    "IncompleteSignature",
    "InvalidAccessKeyId",
];
/// The reasons for which the policy of the user or role is to be looked at.
const DENIED: &[&str] = &["AccessDenied", "AuthorizationError", "UnauthorizedOperation"];
/// The reasons for which the same call succeeds later, if there are fewer. A queue that was removed is made again after a
/// minute.
const THROTTLED: &[&str] = &[
    "Throttl",
    "TooManyRequests",
    "RequestLimitExceeded",
    "SlowDown",
    "BandwidthLimitExceeded",
    "OverLimit",
    DELETED_RECENTLY,
];
const DELETED_RECENTLY: &str = "QueueDeletedRecently";
/// There is no such queue, or topic.
const GONE: &[&str] = &["NonExistentQueue", "QueueDoesNotExist", "NotFound"];

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(error) | Self::Slow(error) => f.write_str(error),
            Self::Refused { code, message } => write!(f, "{code}: {message}"),
        }
    }
}

/// Whether this reason says that there are too many calls.
pub(crate) fn is_throttled(code: &str) -> bool {
    THROTTLED.iter().any(|known| code.contains(known))
}

/// What a call's failure means.
fn trouble<E>(error: SdkError<E, HttpResponse>) -> Trouble
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let said = chain(&error);
    match &error {
        SdkError::ServiceError(service) => {
            let (status, meta) = (service.raw().status().as_u16(), service.err());
            let code = meta.code().unwrap_or("(no code)").to_owned();
            let message = meta.message().unwrap_or("no reason is given").to_owned();
            if status == 429 || is_throttled(&code) {
                return Trouble::Slow(format!("{code} ({status}): {message}"));
            }
            if status >= 500 {
                return Trouble::Passing(format!("{code} ({status})"));
            }
            let date = service.raw().headers().get("date");
            let advice = if let Some(wrong) = clock::is_wrong(&code, &message, date, Timestamp::now()) {
                format!("; {wrong}")
            } else if KEYS.iter().any(|known| code.contains(known)) {
                "; look at the credentials and at the clock of this machine".to_owned()
            } else if DENIED.iter().any(|known| code.contains(known)) {
                "; allow it in the policy of the user or role".to_owned()
            } else {
                String::new()
            };
            Trouble::Refused { code, message: message + &advice }
        }
        SdkError::ConstructionFailure(_) => {
            Trouble::Refused { code: "the request cannot be made".to_owned(), message: said }
        }
        _ if said.contains("redential") || said.contains("identity resolver") => without_credentials(&said),
        _ => Trouble::Passing(said),
    }
}

/// No call was made, for want of credentials. A service that gives some may answer another time; where nothing is set, waiting
/// does not help.
fn without_credentials(said: &str) -> Trouble {
    let (code, message) = (
        "there are no credentials",
        format!(
            "{said}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (`?profile=…`), or run where a role is given"
        ),
    );
    let lasts = ["was not enabled", "not properly configured"].iter().any(|known| said.contains(known));
    if lasts {
        Trouble::Refused { code: code.to_owned(), message }
    } else {
        Trouble::Passing(format!("{code}: {message}"))
    }
}

/// An error with its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut said, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        next = cause.source();
    }
    said
}

impl Link {
    /// Finds region and credentials, and asks both services for something small.
    pub(crate) async fn open(settings: Settings) -> Result<Self, BrokerError> {
        let link = Self::new(settings).await?;
        link.begin(|| link.greet()).await?;
        Ok(link)
    }

    /// Finds region and credentials, and asks nothing.
    pub(crate) async fn new(settings: Settings) -> Result<Self, BrokerError> {
        let config = load(&settings).await?;
        if config.region().is_none() {
            return Err(BrokerError::new(
                "there is no region; write it into the address (`sns://eu-central-1`), or set AWS_REGION",
            ));
        }
        Ok(Self {
            sns: aws_sdk_sns::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            config,
            state: ConnectionState::up(settings.shown()),
            slowed: Slowed::new(),
            young: Lock::new(Rank::LEAF, HashMap::new()),
            settings,
        })
    }

    async fn greet(&self) -> Result<(), Failure> {
        let failure = |service: &'static str| {
            move |trouble| match trouble {
                Trouble::Passing(error) => Failure::Passing(error),
                Trouble::Slow(error) => Failure::Advised(error),
                // Who may not list anything may be allowed all else.
                trouble => Failure::Lasting(trouble.explain(format_args!("use {service}"))),
            }
        };
        let begin = self.settings.names.queues(crate::names::Role::Group);
        let queues = self.sqs.list_queues().queue_name_prefix(begin).max_results(1).send();
        lenient(quietly(CALL, queues).await).map_err(failure("SQS"))?;
        lenient(quietly(CALL, self.sns.list_topics().send()).await).map_err(failure("SNS"))
    }

    /// Begins something: tries for as long as `connect_timeout` says where nobody answers, and longer, less and less often,
    /// where the server is there and wants to be left time.
    pub(crate) async fn begin<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, BrokerError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (begun, patience) = (Instant::now(), self.settings.connect_timeout);
        for tries in 1.. {
            let (tried, wants_time) = (Instant::now(), AtomicBool::new(false));
            let attempt = || async {
                match attempt().await {
                    Err(Failure::Advised(said)) => {
                        // It ends these tries, and the next ones are made later.
                        wants_time.store(true, Ordering::Relaxed);
                        Err(Failure::Lasting(BrokerError::new(said)))
                    }
                    other => other,
                }
            };
            let result = patiently(&self.server(), patience, attempt).await;
            // Calls that were made again and again may have taken all of that time.
            let wants_time = wants_time.into_inner()
                || (result.is_err() && tried.elapsed() >= patience && self.slowed.now().is_some());
            let pause = slow_down(tries);
            if !wants_time || begun.elapsed() + pause > LEFT_TIME {
                return result;
            }
            if let (1, Err(error)) = (tries, &result) {
                log::warn!(
                    target: "eventbus", server = %printable(self.settings.shown()), error = %printable(error),
                    "the broker wants to be left time; trying for {LEFT_TIME:?}"
                );
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("one of the tries is the last")
    }

    /// A queue was made here.
    pub(crate) fn was_made(&self, queue: &str) {
        let mut young = self.young.lock();
        young.retain(|_, made| made.elapsed() < YOUNG);
        young.insert(queue.to_owned(), Instant::now());
    }

    /// What it means that there is no such queue: one that was made here a moment ago is not known everywhere.
    pub(crate) fn unless_young(&self, queue: &str, trouble: Trouble) -> Trouble {
        let is_young = || self.young.lock().get(queue).is_some_and(|made| made.elapsed() < YOUNG);
        if trouble.is_gone() && is_young() { Trouble::Passing(trouble.to_string()) } else { trouble }
    }

    /// Makes a call, and notes whether somebody answers.
    pub(crate) async fn call<T, E>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Trouble>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let result = quietly(limit, call).await;
        match &result {
            Err(Trouble::Passing(error)) => self.state.is_lost(error),
            // It is about one queue, and no matter of how many calls are made.
            Err(Trouble::Slow(error)) if error.starts_with(DELETED_RECENTLY) => self.state.is_up(),
            Err(Trouble::Slow(error)) => {
                self.state.is_up();
                if self.slowed.begins(error) {
                    log::warn!(
                        target: "eventbus", server = %printable(self.settings.shown()), error = %printable(error),
                        "the broker wants fewer calls, so less is sent and received; if it lasts, ask for a higher quota"
                    );
                }
            }
            Ok(_) => {
                self.state.is_up();
                if self.slowed.ends() {
                    log::info!(
                        target: "eventbus", server = %printable(self.settings.shown()),
                        "the broker takes as many calls as are made again"
                    );
                }
            }
            Err(Trouble::Refused { .. }) => self.state.is_up(),
        }
        result
    }

    /// One of many calls, such as a page of a list: while the server wants fewer, it is made again less and less often.
    pub(crate) async fn steadily<T, E, F>(&self, call: impl Fn() -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let begun = Instant::now();
        for tries in 1.. {
            let result = self.call(CALL, call()).await;
            let pause = slow_down(tries);
            if !matches!(result, Err(Trouble::Slow(_))) || begun.elapsed() + pause > STEADY {
                return result;
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("one of the calls is the last")
    }

    /// The server, as errors name it.
    pub(crate) fn server(&self) -> String {
        self.settings.endpoint.clone().unwrap_or_else(|| self.settings.shown())
    }

    /// The region.
    pub(crate) fn region(&self) -> &str {
        self.config.region().map_or("", Region::as_ref)
    }
}

/// Whoever may not do it is a known caller.
fn lenient<T>(result: Result<T, Trouble>) -> Result<(), Trouble> {
    match result {
        Err(trouble) if trouble.is(DENIED) => Ok(()),
        other => other.map(drop),
    }
}

async fn quietly<T, E>(
    limit: Duration,
    call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, Trouble>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(trouble),
        Err(_) => Err(Trouble::Passing(format!("there was no answer within {limit:?}"))),
    }
}

async fn load(settings: &Settings) -> Result<SdkConfig, BrokerError> {
    let mut tls = TlsContext::builder();
    if let Some(path) = &settings.ca {
        let pem = std::fs::read(path).map_err(|error| {
            BrokerError::new(format!("cannot read the authorities `{}` (`ca`)", path.display()))
                .with_cause(error)
        })?;
        if !String::from_utf8_lossy(&pem).contains("BEGIN CERTIFICATE") {
            return Err(BrokerError::new(format!(
                "`{}` (`ca`) is no PEM file with certificates",
                path.display()
            )));
        }
        tls = tls.with_trust_store(TrustStore::empty().with_pem_certificate(pem));
    }
    let tls = tls.build().map_err(|error| BrokerError::new("cannot set TLS up").with_cause(error))?;
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        // What is tried again, and for how long, is decided here.
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some((id, secret)) = &settings.credentials {
        loader = loader.credentials_provider(Credentials::new(
            id.reveal(),
            secret.reveal(),
            None,
            None,
            "eventbus",
        ));
    }
    Ok(loader.load().await)
}
